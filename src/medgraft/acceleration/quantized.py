"""Quantised linear layers, with and without LoRA, whose inputs and outputs are bf16 under autocast; imports bitsandbytes.

bitsandbytes' layers return the dtype of their input even under bf16 autocast, so the operations after them run in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import bnb
from torch import nn

from medgraft.acceleration.effective_weight import EffectiveWeight, of_linear_4bit
from medgraft.acceleration.lora import FusedLora
from medgraft.acceleration.swap import Undo, swap
from medgraft.backbones import Backbone
from medgraft.types import lies_in

_ROWS = 256  # rows of a weight that are dequantised at a time: 0.8 ms instead of 1.6 for [3072, 768]


class AutocastLinear4bit(Linear4bit):
    """A 4-bit layer that returns bf16 under bf16 autocast, as a plain linear layer does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        with _bias_restored(self):
            output: torch.Tensor = super().forward(_as_autocast(x))
        return output

    def as_effective_weight(self) -> EffectiveWeight:
        """See medgraft.acceleration.effective_weight."""
        return of_linear_4bit(self)


class AutocastLinear8bit(Linear8bitLt):
    """An 8-bit layer that casts to bf16 under bf16 autocast; an fp32 input would make its backward pass run in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        with _bias_restored(self):
            output: torch.Tensor = super().forward(_as_autocast(x))
        return output

    def as_effective_weight(self) -> EffectiveWeight | None:
        """See medgraft.acceleration.effective_weight; only for training on a CPU, where weights are dequantised."""
        holder: Any = self.state if self.state.CB is not None else self.weight  # bitsandbytes moves CB at first use
        eights, scales = holder.CB, holder.SCB
        if not self.training or eights is None or eights.device.type != "cpu":
            return None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32

        shape = self.out_features, self.in_features
        return EffectiveWeight(lambda: _unpacked(eights, scales, dtype), shape, dtype, False, self.bias)


def _unpacked(eights: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Dequantise int8 `eights` [out, in] with their rows' absolute maxima `scales` [out], in chunks that fit the CPU cache."""
    unpacked = torch.empty(eights.shape, dtype=dtype)
    steps = scales.unsqueeze(1).mul(1 / 127)
    for whole, step, target in zip(*(torch.split(x, _ROWS) for x in (eights, steps, unpacked)), strict=True):
        torch.mul(whole, step, out=target)
    return unpacked


@contextmanager
def _bias_restored(layer: nn.Module) -> Iterator[None]:
    """Restore the bias after the block, as bitsandbytes casts it to the input's dtype in place."""
    bias: Any = layer.bias
    before = None if bias is None else bias.data
    try:
        yield
    finally:
        if bias is not None:
            bias.data = before


def _as_autocast(x: torch.Tensor) -> torch.Tensor:
    """`x` in autocast's dtype if autocast is on."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else x


class FusedLoraLinear8bit(FusedLora, bnb.Linear8bitLt):
    """Fused LoRA on an 8-bit layer."""


class FusedLoraLinear4bit(FusedLora, bnb.Linear4bit):
    """Fused LoRA on a 4-bit layer."""


_AUTOCAST: dict[type[nn.Module], type[nn.Module]] = {Linear4bit: AutocastLinear4bit, Linear8bitLt: AutocastLinear8bit}
FUSED_LORA: dict[type[nn.Module], type[nn.Module]] = {
    bnb.Linear8bitLt: FusedLoraLinear8bit,
    bnb.Linear4bit: FusedLoraLinear4bit,
}


def install(backbone: Backbone) -> Undo | None:
    """Install on 8-bit layers and on 4-bit layers that compute in bf16, except those in `keep_in_fp32`."""

    def wanted(name: str, module: nn.Module) -> bool:
        bf16 = getattr(module, "compute_dtype", torch.bfloat16) == torch.bfloat16
        return bf16 and not lies_in(name, backbone.keep_in_fp32)

    return swap(backbone.model, _AUTOCAST, wanted)
