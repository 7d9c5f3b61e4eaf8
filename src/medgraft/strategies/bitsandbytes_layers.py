"""Quantised linear layers, with and without LoRA, as they compute here; imports bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import bnb
from torch import nn

from medgraft.projection import Projection, linear_4bit
from medgraft.strategies.lora_sum import OneProduct

__all__ = ["HELD", "LORA"]
_ROWS = 256  # of a weight, unpacked at a time: 0.8 ms for 1.6 at [3072, 768]


class HeldLinear4bit(Linear4bit):
    """Gives bf16 under bf16 autocast as a plain linear layer does, so that what follows is not computed in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        with _bias_kept(self):
            output: torch.Tensor = super().forward(_as_autocast(x))
        return output

    def as_projection(self) -> Projection:
        """See medgraft.projection.projection_of."""
        return linear_4bit(self)


class HeldLinear8bit(Linear8bitLt):
    """Takes and gives bf16 under bf16 autocast: of an fp32 input the backward pass would be computed in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        with _bias_kept(self):
            output: torch.Tensor = super().forward(_as_autocast(x))
        return output

    def as_projection(self) -> Projection | None:
        """See medgraft.projection.projection_of; in training on a CPU, where bitsandbytes multiplies by unpacked weights."""
        held: Any = self.state if self.state.CB is not None else self.weight  # where bitsandbytes moves them at first use
        eights, scales = held.CB, held.SCB
        if not self.training or eights is None or eights.device.type != "cpu":
            return None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32

        shape = self.out_features, self.in_features
        return Projection(lambda: _unpacked(eights, scales, dtype), shape, dtype, False, self.bias)


def _unpacked(eights: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights [out, in] of int8 `eights` and their rows' largest [out], a few rows at a time, kept in the cache."""
    unpacked = torch.empty(eights.shape, dtype=dtype)
    steps = scales.unsqueeze(1).mul(1 / 127)
    for whole, step, target in zip(*(torch.split(x, _ROWS) for x in (eights, steps, unpacked)), strict=True):
        torch.mul(whole, step, out=target)
    return unpacked


@contextmanager
def _bias_kept(layer: nn.Module) -> Iterator[None]:
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


class LoraLinear8bit(OneProduct, bnb.Linear8bitLt):
    """LoRA on an 8-bit layer."""


class LoraLinear4bit(OneProduct, bnb.Linear4bit):
    """LoRA on a 4-bit layer."""


HELD: dict[type, type] = {Linear4bit: HeldLinear4bit, Linear8bitLt: HeldLinear8bit}
LORA: dict[type, type] = {bnb.Linear8bitLt: LoraLinear8bit, bnb.Linear4bit: LoraLinear4bit}
