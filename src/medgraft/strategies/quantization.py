"""Load the base model in 4 or 8 bits, by bitsandbytes through transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from medgraft import hardware
from medgraft.errors import BackboneError, StrategyError
from medgraft.strategies.base import LINEAR_ROLES, Quantization, Strategy
from medgraft.types import Anatomy, lies_in

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedConfig


def quantization_config(strategy: Strategy, anatomy: Anatomy, never: Sequence[str]) -> BitsAndBytesConfig | None:
    """The BitsAndBytesConfig for `strategy`, or None. Modules that match a pattern in `never` are not quantised.

    Parts that are trained in full are not quantised either, since quantised weights cannot be trained.
    """
    if strategy.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    full = [anatomy.parts[part].prefixes for part in anatomy.parts if strategy.plan(part).mode == "full"]
    skip = [*never, *(prefix for prefixes in full for prefix in prefixes)]
    if all(strategy.plan(part).mode == "full" for part in anatomy.parts):
        raise StrategyError(
            f"quantization={strategy.quantization!r} has nothing to quantise: every part is trained in full. "
            "Freeze a part or give it an adapter."
        )
    if strategy.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=strategy.quantization,
        bnb_4bit_use_double_quant=strategy.double_quantization,
        bnb_4bit_compute_dtype=_compute_dtype(strategy),
        llm_int8_skip_modules=skip,
    )


def _compute_dtype(strategy: Strategy) -> torch.dtype:
    if strategy.compute_dtype != "auto":
        dtype: torch.dtype = getattr(torch, strategy.compute_dtype)
        return dtype
    where = hardware.device().type
    if hardware.bf16_supported(where):
        return torch.bfloat16
    return torch.float16 if where == "cuda" else torch.float32


def stored_quantization(config: PreTrainedConfig) -> tuple[Quantization, bool]:
    """The quantisation in which bitsandbytes stored a model's weights, and whether their scales are quantised too."""
    given: Any = getattr(config, "quantization_config", None)
    settings = given.to_dict() if hasattr(given, "to_dict") else given or {}
    if settings.get("load_in_8bit"):
        return "int8", False
    if settings.get("load_in_4bit"):
        kind: Quantization = "nf4" if settings.get("bnb_4bit_quant_type") == "nf4" else "fp4"  # which is bitsandbytes' default
        return kind, bool(settings.get("bnb_4bit_use_double_quant"))
    return "none", False


def as_stored(strategy: Strategy, source: str, config: PreTrainedConfig) -> Strategy:
    """`strategy` with the quantisation in which the base `source` is stored, if it is; StrategyError if it asks for another."""
    stored, double = stored_quantization(config)
    if stored == "none":
        return strategy
    if strategy.quantization not in ("none", stored):
        raise StrategyError(
            f"{source} is stored in {stored} and cannot be loaded in {strategy.quantization}. Choose a strategy in {stored} "
            "or without a quantisation, which leaves it as it is, or name the unquantised checkpoint."
        )
    return strategy.model_copy(update={"quantization": stored, "double_quantization": double and stored != "int8"})


def adopt_stored(model: nn.Module, strategy: Strategy, source: str) -> None:
    """Make a loaded `model` that was stored quantised like one that is quantised on loading.

    Its 4-bit layers compute in the dtype of `strategy`, and its other weights are in fp32: transformers leaves some as they
    are stored. BackboneError unless its layers are in the quantisation that its config.json says.
    """
    quantized: Any = model
    found, names = set(), quantized_modules(model)
    packed = {f"{name}.weight" for name in names}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and name not in packed:
            parameter.data = parameter.data.float()
    for name in names:
        layer: Any = model.get_submodule(name)
        state = getattr(layer.weight, "quant_state", None)
        found.add("int8" if state is None else state.quant_type)
        if state is not None:
            layer.compute_dtype = quantized.config.quantization_config.bnb_4bit_compute_dtype = _compute_dtype(strategy)
    if found != {strategy.quantization}:
        raise BackboneError(
            f"{source} is in {strategy.quantization} by its config.json, but its weights are in "
            f"{' and '.join(sorted(found)) or 'no quantisation'}: they do not belong together."
        )


def check_quantized(model: nn.Module, anatomy: Anatomy, strategy: Strategy, never: Sequence[str]) -> None:
    """Raise StrategyError if a linear layer that `strategy` quantises was loaded unquantised."""
    quantized = set(quantized_modules(model))
    for part in anatomy.parts:
        pattern = anatomy.pattern(part, LINEAR_ROLES)
        if strategy.quantization == "none" or strategy.plan(part).mode == "full" or not pattern:
            continue
        wanted = [n for n, m in model.named_modules() if re.fullmatch(pattern, n) and not any(m.children())]
        left = [n for n in wanted if n not in quantized and not lies_in(n, never)]
        if left:
            raise StrategyError(
                f"{len(left)} of {len(wanted)} linear layers of part {part!r} were not quantised to {strategy.quantization}, "
                f"such as {left[0]}: this version of transformers or bitsandbytes skips them."
            )


def keep_as_loaded(model: nn.Module) -> None:
    """Prevent bitsandbytes from repacking the 4-bit weights of a loaded `model`.

    On a CPU it repacks them at the first inference, and unpacking them for a state dict is lossy, so saving an adapter would
    change its base. Without repacking, whole sequences are also faster.
    """
    for name in quantized_modules(model):
        module: Any = model.get_submodule(name)
        if hasattr(module, "compute_dtype"):
            module.support_avx512bf16_for_cpu = False


def dequantize(model: nn.Module) -> None:
    """Replace the quantised layers of a loaded `model` by layers of their former class with what they stand for, in fp32."""
    names = quantized_modules(model)
    if not names:
        return
    quantized: Any = model
    transposed = [name for name in names if issubclass(quantized.get_submodule(name).source_cls, Conv1D)]
    quantized.dequantize(torch.float32)
    conversions = getattr(quantized, "_weight_conversions", None) or []  # which saving reverses; bitsandbytes' cannot be
    quantized._weight_conversions = [entry for entry in conversions if not _is_of_bitsandbytes(entry)] or None
    for name in transposed:  # transformers makes linear layers of these too
        linear: Any = quantized.get_submodule(name)
        layer = Conv1D(linear.out_features, linear.in_features)
        layer.weight, layer.bias = nn.Parameter(linear.weight.T.contiguous()), linear.bias
        quantized.set_submodule(name, layer)


def _is_of_bitsandbytes(conversion: Any) -> bool:
    return any("bitsandbytes" in type(operation).__module__ for operation in getattr(conversion, "operations", ()))


def quantized_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that bitsandbytes quantised."""
    if not any(hasattr(p, "quant_state") or hasattr(p, "SCB") for p in model.parameters()):
        return ()
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return tuple(name for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt))
