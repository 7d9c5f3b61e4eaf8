"""Strategies: which parameters are trained, and how that is applied to a model."""

from medgraft.strategies.base import PartPlan, Quantization, Strategy
from medgraft.strategies.lookup import get_strategy
from medgraft.strategies.parts import Applied, apply_strategy, bare_name
from medgraft.strategies.peft_methods import UNSUITED, UNSUITED_OPTIONS, methods
from medgraft.strategies.peft_warnings import logged_warnings
from medgraft.strategies.quantization import check_quantized, keep_as_loaded, quantization_config, quantized_modules

__all__ = [
    "UNSUITED",
    "UNSUITED_OPTIONS",
    "Applied",
    "PartPlan",
    "Quantization",
    "Strategy",
    "apply_strategy",
    "bare_name",
    "check_quantized",
    "get_strategy",
    "logged_warnings",
    "methods",
    "keep_as_loaded",
    "quantization_config",
    "quantized_modules",
]
