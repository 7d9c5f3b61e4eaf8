"""Strategies: which parameters are trained, and how that is applied to a model."""

from medgraft.strategies.base import PartPlan, Strategy
from medgraft.strategies.lookup import get_strategy
from medgraft.strategies.parts import Applied, apply_strategy, bare_name
from medgraft.strategies.peft_methods import methods, options_in, peft_strategy
from medgraft.strategies.quantization import check_quantized, keep_as_loaded, quantization_config, quantized_modules

__all__ = [
    "Applied",
    "PartPlan",
    "Strategy",
    "apply_strategy",
    "bare_name",
    "check_quantized",
    "get_strategy",
    "methods",
    "keep_as_loaded",
    "options_in",
    "peft_strategy",
    "quantization_config",
    "quantized_modules",
]
