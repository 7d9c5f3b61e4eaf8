"""BLIP's attention in bf16 on a CPU: in the vision tower a few heads at a time, so that their scores stay in the cache.

The same products, softmax and roundings as computing it step by step, without keeping the weights for the backward pass,
which computes them again (as Dao et al. 2022, arXiv 2205.14135, do by tiles). Forward and backward at [8, 12, 577, 64] in
bf16 on an AMD EPYC with two threads: 186 ms, against 276 by `scaled_dot_product_attention` and 272 step by step. On a Xeon with
AMX 61 ms, against 117 and 80; torch's forward pass alone takes 12 there and this one 20, so torch's is taken and only the
backward pass is by blocks. In fp32 torch's own is the quickest both ways.

Queries, keys and values come as one tensor, as the layer before makes them: each is copied once, and so are the gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from medgraft.acceleration.swap import Undo, swap
from medgraft.backbones import Backbone
from medgraft.backbones.blip_sdpa import SdpaBlipAttention, SdpaBlipTextSelfAttention

_SCORES = 2_700_000  # in memory at a time: 5.4 MB, with the weights twice that; half and half as much again measured slower


class BlockedBlipAttention(SdpaBlipAttention):
    """The vision tower's self-attention, by whatever is the quickest."""

    def attend(self, heads: torch.Tensor, dropout: float) -> torch.Tensor:
        """See SdpaBlipAttention.attend."""
        if dropout or fused_is_quick(heads):
            return super().attend(heads, dropout)
        return blocked_attention(heads, self.scale)


class StepwiseBlipTextSelfAttention(SdpaBlipTextSelfAttention):
    """The decoder's self- and cross-attention: for few tokens in bf16, step by step.

    For one token over 577 patches, [8, 12, 1, 64] in bf16 on a thread of an AMD EPYC, 1 ms for 10 by torch's fused function.
    """

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
    ) -> torch.Tensor:
        """See SdpaBlipTextSelfAttention.attend."""
        if fused_is_quick(query):
            return super().attend(query, key, value, mask, dropout)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = (scores if mask is None else scores + mask.to(scores.dtype)).softmax(dim=-1).to(value.dtype)
        return (nn.functional.dropout(weights, dropout) if dropout else weights) @ value


_TABLE: dict[type[nn.Module], type[nn.Module]] = {
    BlipAttention: BlockedBlipAttention,
    SdpaBlipAttention: BlockedBlipAttention,
    BlipTextSelfAttention: StepwiseBlipTextSelfAttention,
    SdpaBlipTextSelfAttention: StepwiseBlipTextSelfAttention,
}


def install(backbone: Backbone) -> Undo | None:
    """On a BLIP, whose attention becomes a fused one if it is not."""
    return swap(backbone.model, _TABLE)


def fused_is_quick(query: torch.Tensor) -> bool:
    """Whether torch's fused attention is the quickest: but for bf16 on a CPU, whose backward pass it is slow at."""
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return not slow or (torch_forward_is_quick() and not torch.is_grad_enabled())


@functools.cache
def torch_forward_is_quick() -> bool:
    """Whether torch's fused attention in bf16 is the quickest without gradients: where the CPU has units for such products."""
    return bool(torch.cpu._is_amx_tile_supported())


def blocked_attention(heads: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(query key^T * scale) value on the CPU, [B, H, T, D], for the three in `heads`, [3, B, H, T, D]."""
    result: torch.Tensor = _Blocked.apply(heads, scale)  # type: ignore[no-untyped-call]
    return result


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: torch.Tensor, scale: float) -> torch.Tensor:
        query, key, value = heads
        saved = torch.mul(query, scale, out=_like(query)), _like(key).copy_(key), _like(value).copy_(value)
        ctx.save_for_backward(*saved)
        ctx.scale = scale
        with torch.autocast("cpu", enabled=False):
            if torch_forward_is_quick():
                return scaled_dot_product_attention(saved[0], saved[1], saved[2], scale=1.0)
            return _by_blocks(*(x.flatten(0, 1) for x in saved)).view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        batch, count, length, width = gradient.shape
        q, k, v = (x.flatten(0, 1) for x in ctx.saved_tensors)  # each [BH, T, D]
        g = gradient.flatten(0, 1)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for rows, scores, weights in _blocks(q):
            torch.bmm(q[rows], k[rows].transpose(1, 2), out=scores)
            torch.softmax(scores, -1, out=weights)
            torch.bmm(weights.transpose(1, 2), g[rows], out=dv[rows])
            torch.bmm(g[rows], v[rows].transpose(1, 2), out=scores)  # now the gradient of the weights
            ds = torch._softmax_backward_data(scores, weights, -1, weights.dtype)
            torch.bmm(ds, k[rows], out=dq[rows])
            torch.bmm(ds.transpose(1, 2), q[rows], out=dk[rows])
        result = q.new_empty(batch, length, 3, count, width).permute(2, 0, 3, 1, 4)  # as the layer before has its output
        torch.mul(dq.view(gradient.shape), ctx.scale, out=result[0])
        result[1], result[2] = dk.view(gradient.shape), dv.view(gradient.shape)
        return result, None


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype)  # contiguous, whatever x is


def _by_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    output = torch.empty_like(q)
    for rows, scores, weights in _blocks(q):
        torch.bmm(q[rows], k[rows].transpose(1, 2), out=scores)
        torch.softmax(scores, -1, out=weights)
        torch.bmm(weights, v[rows], out=output[rows])
    return output


def _blocks(q: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows of [BH, T, D] tensors that are computed together, with room for their scores and weights [rows, T, T]."""
    length = q.shape[1]
    size = min(max(1, _SCORES // length**2), len(q))
    scores, weights = (q.new_empty(size, length, length) for _ in range(2))
    for start in range(0, len(q), size):
        count = min(size, len(q) - start)
        yield slice(start, start + count), scores[:count], weights[:count]
