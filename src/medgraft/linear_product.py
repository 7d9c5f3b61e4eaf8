"""A linear layer's products in bf16 on a CPU.

torch copies a bias into every row of the output before it multiplies; oneDNN adds it inside its product, rounded once as well.
Going back, the gradient of W is g^T x, and oneDNN is slow at products with a transposed left operand: for BLIP's perceptron
on 4,616 rows, on two threads of a Xeon with AMX, they take 15 and 17 ms, and 12 if the narrower of the two is transposed
beforehand. A step of full training there went from 3.38 s to 3.26 by both, alternated within one run.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

_ROWS = 128  # transposed at a time: they and their columns stay in the cache; a whole tensor takes three times as long
_COLUMNS = 64  # of a transposed matrix, copied at a time
_MANY_ROWS, _WIDER = 1024, 2  # from which on, and for one side how much wider than the other, transposing first was quicker


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """X [..., in] W^T + bias in the dtype of x, whatever those of the parameters: [..., out]; first derivatives only."""
    if bias is None or x.device.type != "cpu":
        return nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    output: torch.Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return output.view(*x.shape[:-1], output.shape[-1])


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """X [N, in] W^T + bias, [N, out], all of one dtype; without gradients."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and _adds_bias():
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return output
    return nn.functional.linear(x, weight, bias)


@functools.cache
def _adds_bias() -> bool:
    """Whether oneDNN has products in bf16 here, and torch the operation that hands it the bias."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        rounded = weight.to(x.dtype)
        # rounding again costs little beside the product of many rows, and what they keep makes the peak
        kept = weight if len(x) >= _MANY_ROWS else rounded
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, kept)
        ctx.dtypes = weight.dtype, bias.dtype
        return product(x, rounded, bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        of_weight, of_bias = parameter_gradients(gradient, x) if to_weight else (None, gradient.sum(0) if to_bias else None)
        return (
            gradient @ weight.to(gradient.dtype) if to_x else None,
            _contiguous(of_weight, ctx.dtypes[0]) if of_weight is not None else None,
            of_bias.to(ctx.dtypes[1]) if of_bias is not None and to_bias else None,
        )


def parameter_gradients(gradient: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient [N, out] ^T x [N, in], [out, in], and the sum of its rows [out]."""
    (rows, out), width = gradient.shape, x.shape[1]
    many = rows >= _MANY_ROWS and torch.cpu._is_amx_tile_supported()
    if many and out >= _WIDER * width:
        both = _transposed(x, ones=1) @ gradient  # [in + 1, out]: the sum is the product with a column of ones
        return both[:-1].t(), both[-1]
    left = _transposed(gradient) if many and width >= _WIDER * out else gradient.t()
    return left @ x, gradient.sum(0)


def _contiguous(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A contiguous copy of [R, C]; a transposed one a few columns at a time, 1.1 ms for 1.8 at [3072, 768]."""
    copy = matrix.new_empty(matrix.shape, dtype=dtype)
    step = matrix.shape[1] if matrix.is_contiguous() else _COLUMNS
    for source, target in zip(torch.split(matrix, step, 1), torch.split(copy, step, 1), strict=True):
        target.copy_(source)
    return copy


def _transposed(matrix: torch.Tensor, ones: int = 0) -> torch.Tensor:
    """The transpose of [N, C], contiguous, with so many rows of ones below it: [C + ones, N]."""
    (rows, columns) = matrix.shape
    transposed = matrix.new_empty(columns + ones, rows)
    for start in range(0, rows, _ROWS):
        transposed[:columns, start : start + _ROWS] = matrix[start : start + _ROWS].t()
    transposed[columns:] = 1
    return transposed
