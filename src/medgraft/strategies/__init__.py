"""Strategies: which parameters are trained, and how that is applied to a model.

Settings alone need no torch; it is loaded by the first name that applies them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medgraft.strategies.base import PartPlan, Quantization, Strategy, bare_name

if TYPE_CHECKING:
    from medgraft.strategies.fp32_weights import needs_fp32, reads_once
    from medgraft.strategies.lookup import get_strategy
    from medgraft.strategies.lora_inits import changes_base, moves_base
    from medgraft.strategies.parts import Applied, apply_strategy
    from medgraft.strategies.peft_methods import methods, options_in, peft_strategy
    from medgraft.strategies.peft_warnings import logged_warnings
    from medgraft.strategies.quantization import (
        adopt_stored,
        as_stored,
        check_quantized,
        dequantize,
        keep_as_loaded,
        quantization_config,
        quantized_modules,
        stored_quantization,
    )

_LAZY = {"get_strategy": "lookup", "changes_base": "lora_inits", "moves_base": "lora_inits", "logged_warnings": "peft_warnings"}
_LAZY |= dict.fromkeys(("needs_fp32", "reads_once"), "fp32_weights")
_LAZY |= dict.fromkeys(("methods", "options_in", "peft_strategy"), "peft_methods")
_LAZY |= dict.fromkeys(("Applied", "apply_strategy"), "parts")
_LAZY |= dict.fromkeys(
    (
        "adopt_stored", "as_stored", "check_quantized", "dequantize", "keep_as_loaded", "quantization_config",
        "quantized_modules", "stored_quantization",
    ),
    "quantization",
)  # fmt: skip

__all__ = [
    "Applied",
    "PartPlan",
    "Quantization",
    "Strategy",
    "adopt_stored",
    "apply_strategy",
    "as_stored",
    "bare_name",
    "changes_base",
    "check_quantized",
    "dequantize",
    "get_strategy",
    "logged_warnings",
    "keep_as_loaded",
    "methods",
    "moves_base",
    "needs_fp32",
    "options_in",
    "peft_strategy",
    "quantization_config",
    "quantized_modules",
    "reads_once",
    "stored_quantization",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"medgraft.strategies.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'medgraft.strategies' has no attribute {name!r}")
