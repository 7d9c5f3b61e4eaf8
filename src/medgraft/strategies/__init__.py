"""Strategies: which parameters are trained, and how that is applied to a model.

Settings alone need no torch; it is loaded by the first name that applies them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.lazy import lazily
from medgraft.strategies.base import PartPlan, Quantization, Strategy, bare_name

if TYPE_CHECKING:
    from medgraft.strategies.fp32_weights import needs_fp32, reads_once
    from medgraft.strategies.lookup import get_strategy, recorded_strategy
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
    )  # fmt: skip
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "Applied", "PartPlan", "Quantization", "Strategy", "adopt_stored", "apply_strategy", "as_stored", "bare_name",
    "changes_base", "check_quantized", "dequantize", "get_strategy", "keep_as_loaded", "logged_warnings", "methods",
    "moves_base", "needs_fp32", "options_in", "peft_strategy", "quantization_config", "quantized_modules", "reads_once",
    "recorded_strategy", "stored_quantization",
]  # fmt: skip
