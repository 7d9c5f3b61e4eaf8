"""A linear layer as the one matrix that it multiplies by, LoRA and 4-bit weights included, and products with it by heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Projection:
    """x W^T + bias, where W is `weight` [out, in] and, with LoRA, `scaling` * `b` [out, r] `a` [r, in] more."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    scaling: float = 1.0

    def onto_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Each head's `rows` [H, N, D] times its part of W: [H, N, in]."""
        product = torch.bmm(rows, self._by_heads(self.weight, len(rows)))
        if self.a is None or self.b is None:
            return product
        low = torch.bmm(rows, self._by_heads(self.b, len(rows)))  # [H, N, r]
        return torch.baddbmm(product, low, self.a.expand(len(rows), -1, -1), alpha=self.scaling)

    def of_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Each head's `rows` [H, N, in] times its part of W^T, without the bias: [H, N, D]."""
        product = torch.bmm(rows, self._by_heads(self.weight, len(rows)).transpose(1, 2))
        if self.a is None or self.b is None:
            return product
        low = torch.matmul(rows, self.a.t())  # [H, N, r]
        return torch.baddbmm(product, low, self._by_heads(self.b, len(rows)).transpose(1, 2), alpha=self.scaling)

    @staticmethod
    def _by_heads(matrix: torch.Tensor, heads: int) -> torch.Tensor:
        return matrix.view(heads, -1, matrix.shape[1])


def projection_of(layer: nn.Module) -> Projection | None:
    """`layer` as one, None if it does something else: other adapters, dropout, sums in 8 bits, somebody's hooks.

    Layers of ours that are a projection say so themselves, by a method `projection`.
    """
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return None
    if type(layer) is nn.Linear:
        return Projection(layer.weight, layer.bias)
    own = getattr(layer, "projection", None)
    found: Projection | None = own() if own is not None else _of_4bit(layer)
    return found


def _of_4bit(layer: nn.Module) -> Projection | None:
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if state is None:
        return None
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    if not isinstance(layer, Linear4bit):
        return None
    weight = dequantize_4bit(layer.weight.detach(), state)
    return Projection(weight if layer.compute_dtype is None else weight.to(layer.compute_dtype), layer.bias)
