"""How a quantised base is asked for: bitsandbytes through transformers' own config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from medgraft.errors import StrategyError
from medgraft.strategies.base import Strategy
from medgraft.types import Anatomy

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def quantization_config(strategy: Strategy, anatomy: Anatomy, never: Sequence[str]) -> BitsAndBytesConfig | None:
    """The BitsAndBytesConfig for `strategy`, or None. `never` are module names that must stay as they are.

    Parts that are trained in full stay unquantised, since quantised weights cannot be trained.
    """
    if strategy.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    skip = list(never) + [anatomy.parts[p].prefix for p in anatomy.parts if strategy.plan(p).mode == "full"]
    if all(strategy.plan(part).mode == "full" for part in anatomy.parts):
        raise StrategyError(
            f"quantization={strategy.quantization!r} has nothing to hold: every part is trained in full. "
            "Freeze a part or give it an adapter."
        )
    if strategy.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=strategy.quantization,
        bnb_4bit_use_double_quant=strategy.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, strategy.compute_dtype),
        llm_int8_skip_modules=skip,
    )


def keep_unpacked(model: nn.Module) -> None:
    """Keep 4-bit weights on a CPU as they were loaded, changing `model`.

    bitsandbytes repacks them at the first inference and unpacks them with a loss when a state dict is taken, so that
    saving an adapter would change its base; its repacked kernel is also the slower one for whole sequences.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - torch types attributes as tensors


def quantized_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules whose weights bitsandbytes holds."""
    if not any(hasattr(p, "quant_state") or hasattr(p, "SCB") for p in model.parameters()):
        return ()
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return tuple(name for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt))
