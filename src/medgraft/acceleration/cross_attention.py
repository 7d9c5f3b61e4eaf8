"""Cross-attention whose key and value projections are applied to the tokens instead of the image.

A token's score for a patch is q (W x)^T = (q W) x^T, and what it takes from the patches is p (x W^T) = (p x) W^T, so that
the patches' keys and values need not be computed (the absorption of Multi-head Latent Attention, DeepSeek-AI 2024, arXiv
2405.04434, section 2.1.2, for training). With C channels in H heads, S patches and T tokens, two products of S C^2
multiplications become two of H T S C: fewer as long as a caption has less than about C / H tokens. Going back it is the same
if W is trained; if it is frozen and so are the patches, keys and values would cost nothing there, and half as many tokens pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from medgraft.acceleration.effective_weight import EffectiveWeight
from medgraft.acceleration.packed_captions import PackedBatch


def saves_products(
    key: EffectiveWeight, value: EffectiveWeight, images: torch.Tensor, lengths: Sequence[int], heads: int
) -> bool:
    """Whether it takes less time for [B, S, in] `images` than keys and values, gradients included: by multiplications."""
    back = torch.is_grad_enabled()
    trained = back and (key.trained or value.trained)
    to_images = back and images.requires_grad
    (count, patches, width), (out, _), tokens = images.shape, key.shape, sum(lengths)
    projections = 2 * count * patches * width * out * (1 + trained + to_images) + 2 * tokens * patches * out * (1 + 2 * back)
    absorbed = 2 * tokens * width * out * (1 + back + trained) + 2 * heads * tokens * patches * width * (1 + back + to_images)
    adapted = key.a is not None or value.a is not None  # LoRA over patches moves much memory, and is not counted
    return absorbed < (1.0 if adapted else 0.75) * projections  # products of one caption are small, and run slower


def absorbed_attention(
    query: torch.Tensor, images: torch.Tensor, key: EffectiveWeight, value: EffectiveWeight, batch: PackedBatch, scale: float
) -> torch.Tensor:
    """softmax(query keys^T * scale) values for packed tokens [H, N, D] over their own image of [B, S, in]: [H, N, D]."""
    onto = key.onto_inputs(query * scale)
    taken: torch.Tensor = _OverImages.apply(onto, batch.cast(images, onto.dtype), batch)  # type: ignore[no-untyped-call]
    context = value.of_inputs(taken)
    if value.bias is not None:
        context = context + value.bias.to(context.dtype).view(len(query), 1, -1)  # whole, as weights sum to 1
    if key.bias is not None and key.bias.requires_grad:  # cancels in softmax, as all patches share it; DDP wants its zeros
        context = context + (0 * key.bias.sum()).to(context.dtype)
    return context


class _OverImages(torch.autograd.Function):
    """softmax(tokens x^T) x, of tokens [H, N, in] and for each caption its image x [S, in]."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, images: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        taken, kept = _zeros_for_filler(tokens, batch), []
        with torch.autocast(tokens.device.type, enabled=False):
            for rows, image in zip(batch.slices(), images, strict=True):
                weights = torch.softmax(_flat(tokens, rows) @ image.t(), -1)  # [H T, S]
                taken[:, rows] = _by_heads(weights @ image, len(tokens))
                kept.append(weights)
        to_images = ctx.needs_input_grad[1]
        ctx.save_for_backward(images, tokens if to_images else None, *kept)
        ctx.batch = batch
        return taken

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        images, tokens, *kept = ctx.saved_tensors
        to_tokens = _zeros_for_filler(gradient, ctx.batch)
        to_images = torch.empty_like(images) if ctx.needs_input_grad[1] else None
        for number, (rows, image, weights) in enumerate(zip(ctx.batch.slices(), images, kept, strict=True)):
            g = _flat(gradient, rows)
            scores = torch._softmax_backward_data(g @ image.t(), weights, -1, weights.dtype)
            to_tokens[:, rows] = _by_heads(scores @ image, len(gradient))
            if to_images is not None:
                torch.mm(scores.t(), _flat(tokens, rows), out=to_images[number])
                torch.addmm(to_images[number], weights.t(), g, out=to_images[number])  # addmm_ is no FLOP to torch
        return to_tokens, to_images, None


def _zeros_for_filler(like: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """An empty tensor of that shape [H, N, in], 0 where the tokens are filler."""
    result = torch.empty_like(like)
    result[:, result.shape[1] - batch.filler :] = 0
    return result


def _flat(tokens: torch.Tensor, rows: slice) -> torch.Tensor:
    """One caption's tokens of every head, [H T, in]."""
    return tokens[:, rows].reshape(-1, tokens.shape[2])


def _by_heads(flat: torch.Tensor, heads: int) -> torch.Tensor:
    """Back to [H, T, in]."""
    return flat.view(heads, len(flat) // heads, flat.shape[1])
