"""A 4-bit linear layer for bf16 autocast; imports bitsandbytes."""

from __future__ import annotations

import torch
from bitsandbytes.nn import Linear4bit

__all__ = ["HeldLinear4bit", "Linear4bit"]


class HeldLinear4bit(Linear4bit):
    """Gives bf16 under bf16 autocast as a plain linear layer does, so that what follows is not computed in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        output: torch.Tensor = super().forward(x)
        return output
