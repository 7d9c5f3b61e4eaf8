"""The effective weight matrix of a linear layer, LoRA and quantised weights included."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class EffectiveWeight:
    """A layer x W^T + bias, where W [out, in] is `weight()`, plus `scaling` * `b` [out, r] `a` [r, in] with LoRA.

    `shape` is (out, in), `dtype` that of `weight()`, and `trained` tells whether it requires gradients. Products have the
    dtype of their rows, or autocast's.
    """

    weight: Callable[[], torch.Tensor]
    shape: tuple[int, int]
    dtype: torch.dtype
    trained: bool = False
    bias: torch.Tensor | None = None
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    scaling: float = 1.0

    def onto_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` [H, N, D] of each head times the head's rows of W: [H, N, in]."""
        product = torch.bmm(rows, _by_heads(self.weight(), rows))
        if self.a is None or self.b is None:
            return product
        low = torch.bmm(rows, _by_heads(self.b, rows))  # [H, N, r]
        return torch.baddbmm(product, low, self.a.to(rows.dtype).expand(len(rows), -1, -1), alpha=self.scaling)

    def of_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` [H, N, in] of each head times the head's columns of W^T, without the bias: [H, N, D]."""
        product = torch.bmm(rows, _by_heads(self.weight(), rows).transpose(1, 2))
        if self.a is None or self.b is None:
            return product
        low = torch.matmul(rows, self.a.to(rows.dtype).t())  # [H, N, r]
        return torch.baddbmm(product, low, _by_heads(self.b, rows).transpose(1, 2), alpha=self.scaling)


def effective_weight(layer: nn.Module) -> EffectiveWeight | None:
    """The effective weight of `layer`; None if it is more than a matrix: other adapters, dropout, 8-bit products, hooks.

    Layers of medgraft's kernels have a method `as_effective_weight` for it.
    """
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    if hooks or "forward" in vars(layer):  # set by accelerate's hooks
        return None
    if type(layer) is nn.Linear:
        return of_linear(layer)
    own: Any = getattr(layer, "as_effective_weight", None)
    if own is not None:
        found: EffectiveWeight | None = own()
        return found
    in_4_bits = getattr(getattr(layer, "weight", None), "quant_state", None)
    if in_4_bits is not None and not getattr(in_4_bits, "packing_format_for_cpu", False):  # False unless repacked
        from bitsandbytes.nn import Linear4bit

        return of_linear_4bit(layer) if type(layer) is Linear4bit else None
    return None


def of_linear(layer: nn.Linear) -> EffectiveWeight:
    """The effective weight of an unquantised layer."""
    shape = layer.out_features, layer.in_features
    return EffectiveWeight(lambda: layer.weight, shape, layer.weight.dtype, layer.weight.requires_grad, layer.bias)


def of_linear_4bit(layer: Any) -> EffectiveWeight:
    """The effective weight of a 4-bit layer, dequantised to the layer's compute dtype for each product."""
    from bitsandbytes.functional import dequantize_4bit

    state = copy(layer.weight.quant_state)  # its dtype is the one that weights are dequantised to
    state.dtype = layer.compute_dtype or state.dtype

    def weight() -> torch.Tensor:
        unpacked: torch.Tensor = dequantize_4bit(layer.weight.detach(), state)
        return unpacked

    return EffectiveWeight(weight, (layer.out_features, layer.in_features), state.dtype, False, layer.bias)


def _by_heads(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[H D, n] as [H, D, n] in the dtype of `rows`."""
    return matrix.to(rows.dtype).view(len(rows), len(matrix) // len(rows), matrix.shape[1])
