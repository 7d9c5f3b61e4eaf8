"""Quantised linear layers, with and without LoRA, that take and give bf16 under autocast; imports bitsandbytes.

Under bf16 autocast bitsandbytes' layers return to the dtype of their input, and what follows is computed in fp32.
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

_ROWS = 256  # of a weight, unpacked at a time: 0.8 ms for 1.6 at [3072, 768]


class AutocastLinear4bit(Linear4bit):
    """Gives bf16 under bf16 autocast as a plain linear layer does, so that what follows is not computed in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        with _bias_restored(self):
            output: torch.Tensor = super().forward(_as_autocast(x))
        return output

    def as_effective_weight(self) -> EffectiveWeight:
        """See medgraft.acceleration.effective_weight."""
        return of_linear_4bit(self)


class AutocastLinear8bit(Linear8bitLt):
    """Takes and gives bf16 under bf16 autocast: of an fp32 input the backward pass would be computed in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        with _bias_restored(self):
            output: torch.Tensor = super().forward(_as_autocast(x))
        return output

    def as_effective_weight(self) -> EffectiveWeight | None:
        """See medgraft.acceleration.effective_weight; only in training on a CPU, where weights are unpacked."""
        holder: Any = self.state if self.state.CB is not None else self.weight  # where bitsandbytes moves them at first use
        eights, scales = holder.CB, holder.SCB
        if not self.training or eights is None or eights.device.type != "cpu":
            return None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32

        shape = self.out_features, self.in_features
        return EffectiveWeight(lambda: _unpacked(eights, scales, dtype), shape, dtype, False, self.bias)


def _unpacked(eights: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights [out, in] of int8 `eights` and their rows' largest [out], a few rows at a time, which stay in the cache."""
    unpacked = torch.empty(eights.shape, dtype=dtype)
    steps = scales.unsqueeze(1).mul(1 / 127)
    for whole, step, target in zip(*(torch.split(x, _ROWS) for x in (eights, steps, unpacked)), strict=True):
        torch.mul(whole, step, out=target)
    return unpacked


@contextmanager
def _bias_restored(layer: nn.Module) -> Iterator[None]:
    """The bias is itself again after the block: bitsandbytes rounds it to the input's dtype for good."""
    bias: Any = layer.bias
    before = None if bias is None else bias.data
    try:
        yield
    finally:
        if bias is not None:
            bias.data = before


def _as_autocast(x: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype of autocast where that is on."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else x


class FusedLoraLinear8bit(FusedLora, bnb.Linear8bitLt):
    """LoRA on an 8-bit layer."""


class FusedLoraLinear4bit(FusedLora, bnb.Linear4bit):
    """LoRA on a 4-bit layer."""


_AUTOCAST: dict[type[nn.Module], type[nn.Module]] = {Linear4bit: AutocastLinear4bit, Linear8bitLt: AutocastLinear8bit}
FUSED_LORA: dict[type[nn.Module], type[nn.Module]] = {
    bnb.Linear8bitLt: FusedLoraLinear8bit,
    bnb.Linear4bit: FusedLoraLinear4bit,
}


def install(backbone: Backbone) -> Undo | None:
    """On layers of 8 bits and those of 4 that compute in bf16, but for those that the backbone keeps in fp32."""

    def wanted(name: str, module: nn.Module) -> bool:
        bf16 = getattr(module, "compute_dtype", torch.bfloat16) == torch.bfloat16
        return bf16 and not lies_in(name, backbone.keep_in_fp32)

    return swap(backbone.model, _AUTOCAST, wanted)
