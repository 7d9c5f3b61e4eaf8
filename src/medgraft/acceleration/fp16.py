"""Layers that overflow in fp16, whose largest number is 65,504, computed in fp32 when the rest is in fp16."""

from __future__ import annotations

import torch
from torch import nn

from medgraft import hardware
from medgraft.acceleration.swap import swap
from medgraft.backbones import Backbone
from medgraft.backbones.half_weights import overflows_in_fp16


class Fp32Linear(nn.Linear):
    """A linear layer that computes in fp32 under autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out] in fp32."""
        with hardware.no_autocast(input.device):
            return super().forward(input.float())


def keep_in_fp32(backbone: Backbone) -> None:
    """Make the linear layers compute in fp32 that transformers keeps in fp32 when it loads a model in fp16, as T5's `wo`."""
    swap(backbone.model, {nn.Linear: Fp32Linear}, lambda name, module: overflows_in_fp16(backbone.model, name))
