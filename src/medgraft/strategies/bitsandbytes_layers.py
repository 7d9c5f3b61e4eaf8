"""Quantised linear layers, with and without LoRA, as they compute here; imports bitsandbytes."""

from __future__ import annotations

import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import bnb

from medgraft.projection import Projection, linear_4bit
from medgraft.strategies.lora_sum import OneProduct

__all__ = ["LORA", "HeldLinear4bit", "Linear4bit"]


class HeldLinear4bit(Linear4bit):
    """Gives bf16 under bf16 autocast as a plain linear layer does, so that what follows is not computed in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        output: torch.Tensor = super().forward(x)
        return output

    def as_projection(self) -> Projection:
        """See medgraft.projection.projection_of."""
        return linear_4bit(self)


class LoraLinear8bit(OneProduct, bnb.Linear8bitLt):
    """LoRA on an 8-bit layer."""


class LoraLinear4bit(OneProduct, bnb.Linear4bit):
    """LoRA on a 4-bit layer."""


LORA: dict[type, type] = {bnb.Linear8bitLt: LoraLinear8bit, bnb.Linear4bit: LoraLinear4bit}
