"""BLIP's attention in bf16 on a CPU: the vision tower computes a few heads at a time, so that their scores stay in the cache.

Products, softmax and rounding are those of eager attention, but the backward pass recomputes the attention weights instead of
saving them (as Dao et al. 2022, arXiv 2205.14135, do by tiles). Forward and backward at [8, 12, 577, 64] in bf16 on an AMD EPYC
with two threads took 186 ms, against 276 for `scaled_dot_product_attention` and 272 for eager attention; on a Xeon with AMX
61 ms, against 117 and 80. On that Xeon torch's forward pass alone takes 12 ms and this one 20, so torch's is used there and
only the backward pass works in blocks. In fp32 torch's attention is fastest in both directions.

Queries, keys and values arrive as one tensor from the layer before. Each is copied once, and so is each gradient.
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

_SCORES = 2_700_000  # per block: 5.4 MB, and as much for the weights; 0.5 and 1.5 times as many measured slower


class BlockedBlipAttention(SdpaBlipAttention):
    """The vision tower's self-attention: blocked, or torch's fused function where that is faster."""

    def attend(self, heads: torch.Tensor, dropout: float) -> torch.Tensor:
        """See SdpaBlipAttention.attend."""
        if dropout or fused_is_quick(heads):
            return super().attend(heads, dropout)
        return blocked_attention(heads, self.scale)


class StepwiseBlipTextSelfAttention(SdpaBlipTextSelfAttention):
    """The decoder's self- and cross-attention, unfused in bf16 on a CPU.

    One token over 577 patches, [8, 12, 1, 64] in bf16 on one thread of an AMD EPYC, takes 1 ms; torch's fused function 10.
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
    """Install on a BLIP, fused or eager."""
    return swap(backbone.model, _TABLE)


def fused_is_quick(query: torch.Tensor) -> bool:
    """Whether torch's fused attention is fastest: always, except in bf16 on a CPU, where its backward pass is slow."""
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return not slow or (torch_forward_is_quick() and not torch.is_grad_enabled())


@functools.cache
def torch_forward_is_quick() -> bool:
    """Whether torch's fused bf16 attention is fastest without gradients: on CPUs with AMX."""
    return bool(torch.cpu._is_amx_tile_supported())


def blocked_attention(heads: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(query key^T * scale) value, [B, H, T, D], on the CPU; `heads` [3, B, H, T, D] are query, key and value."""
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
            torch.bmm(g[rows], v[rows].transpose(1, 2), out=scores)  # reused for the gradient of the weights
            ds = torch._softmax_backward_data(scores, weights, -1, weights.dtype)
            torch.bmm(ds, k[rows], out=dq[rows])
            torch.bmm(ds.transpose(1, 2), q[rows], out=dk[rows])
        result = q.new_empty(batch, length, 3, count, width).permute(2, 0, 3, 1, 4)  # laid out as the qkv layer's output
        torch.mul(dq.view(gradient.shape), ctx.scale, out=result[0])
        result[1], result[2] = dk.view(gradient.shape), dv.view(gradient.shape)
        return result, None


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype)  # contiguous even if x is not


def _by_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    output = torch.empty_like(q)
    for rows, scores, weights in _blocks(q):
        torch.bmm(q[rows], k[rows].transpose(1, 2), out=scores)
        torch.softmax(scores, -1, out=weights)
        torch.bmm(weights, v[rows], out=output[rows])
    return output


def _blocks(q: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Slices of the rows of [BH, T, D] tensors, each with buffers for its scores and weights [rows, T, T]."""
    length = q.shape[1]
    size = min(max(1, _SCORES // length**2), len(q))
    scores, weights = (q.new_empty(size, length, length) for _ in range(2))
    for start in range(0, len(q), size):
        count = min(size, len(q) - start)
        yield slice(start, start + count), scores[:count], weights[:count]
