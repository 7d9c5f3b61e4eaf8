"""Attention in bf16 on a CPU, a few heads at a time, so that their scores stay in the cache.

The same products, softmax and roundings as computing it step by step, without keeping the weights for the backward pass,
which computes them again (as Dao et al. 2022, arXiv 2205.14135, do by tiles). Forward and backward at [8, 12, 577, 64] in
bf16 on an AMD EPYC with two threads: 186 ms, against 276 by `scaled_dot_product_attention` and 272 step by step. On a Xeon with
AMX 66 ms, against 117 and 80; torch's forward pass alone takes 12 there and this one 20, so torch's is taken and only the
backward pass is by blocks. In fp32 torch's own is the quickest both ways.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

_SCORES = 1_400_000  # held at a time: 2.8 MB, with the weights twice that; half and double of it measured slower


@functools.cache
def torch_forward_is_quick() -> bool:
    """Whether torch's fused attention in bf16 is the quickest without gradients: where the CPU has units for such products."""
    return bool(torch.cpu._is_amx_tile_supported())


def blocked_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(query key^T * scale) value for [B, H, T, D] tensors of one dtype on the CPU, [B, H, T, D]."""
    result: torch.Tensor = _Blocked.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return result


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            q, k, v = (query * scale).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)  # each [BH, T, D]
            fused = torch_forward_is_quick()
            output = scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0] if fused else _by_blocks(q, k, v)
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.heads = scale, query.shape[:2]
        return output.view(*ctx.heads, *output.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        q, k, v = ctx.saved_tensors
        g = gradient.flatten(0, 1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for rows, scores, weights in _blocks(q, k):
            torch.bmm(q[rows], k[rows].transpose(1, 2), out=scores)
            torch.softmax(scores, -1, out=weights)
            torch.bmm(weights.transpose(1, 2), g[rows], out=dv[rows])
            torch.bmm(g[rows], v[rows].transpose(1, 2), out=scores)  # now the gradient of the weights
            ds = torch._softmax_backward_data(scores, weights, -1, weights.dtype)
            torch.bmm(ds, k[rows], out=dq[rows])
            torch.bmm(ds.transpose(1, 2), q[rows], out=dk[rows])
        dq = dq * ctx.scale
        return dq.view(*ctx.heads, *dq.shape[1:]), dk.view(*ctx.heads, *dk.shape[1:]), dv.view(*ctx.heads, *dv.shape[1:]), None


def _by_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    output = torch.empty_like(q)
    for rows, scores, weights in _blocks(q, k):
        torch.bmm(q[rows], k[rows].transpose(1, 2), out=scores)
        torch.softmax(scores, -1, out=weights)
        torch.bmm(weights, v[rows], out=output[rows])
    return output


def _blocks(q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows of [BH, ...] tensors that are computed together, with room for their scores and weights [rows, T, T']."""
    size = min(max(1, _SCORES // (q.shape[1] * k.shape[1])), len(q))
    scores, weights = (q.new_empty(size, q.shape[1], k.shape[1]) for _ in range(2))
    for start in range(0, len(q), size):
        count = min(size, len(q) - start)
        yield slice(start, start + count), scores[:count], weights[:count]
