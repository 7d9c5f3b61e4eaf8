"""Strategies: which parameters are trained, and how that is applied to a model."""

from medgraft.strategies.base import PartPlan, Strategy
from medgraft.strategies.lookup import get_strategy
from medgraft.strategies.parts import Applied, add_peft, apply_strategy, bare_name
from medgraft.strategies.peft_methods import methods
from medgraft.strategies.quantization import (
    check_quantized,
    dequantize,
    keep_as_loaded,
    quantization_config,
    quantized_modules,
)

__all__ = [
    "Applied",
    "PartPlan",
    "Strategy",
    "add_peft",
    "apply_strategy",
    "bare_name",
    "check_quantized",
    "dequantize",
    "get_strategy",
    "methods",
    "keep_as_loaded",
    "quantization_config",
    "quantized_modules",
]
