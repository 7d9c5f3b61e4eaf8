"""Cross-attention that applies the key and value projections to the tokens instead of the image.

A token's score for a patch is q (W x)^T = (q W) x^T, and its context is p (x W^T) = (p x) W^T, so the patches' keys and values
need not be computed. This is the absorption of Multi-head Latent Attention (DeepSeek-AI 2024, arXiv 2405.04434, section
2.1.2), used for training. With C channels in H heads, S patches and T tokens, two products of S C^2 multiplications become
two of H T S C, which is less if a caption has fewer than about C / H tokens. The same holds for the backward pass if W is
trained. If W and the patches are frozen, keys and values have no backward pass, and the limit is half as many tokens.
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
    """Whether absorption needs fewer multiplications than keys and values for `images` [B, S, in], gradients included."""
    back = torch.is_grad_enabled()
    trained = back and (key.trained or value.trained)
    to_images = back and images.requires_grad
    (count, patches, width), (out, _), tokens = images.shape, key.shape, sum(lengths)
    projections = 2 * count * patches * width * out * (1 + trained + to_images) + 2 * tokens * patches * out * (1 + 2 * back)
    absorbed = 2 * tokens * width * out * (1 + back + trained) + 2 * heads * tokens * patches * width * (1 + back + to_images)
    adapted = key.a is not None or value.a is not None  # LoRA on the patches is bound by memory and not counted above
    return absorbed < (1.0 if adapted else 0.75) * projections  # a single caption's products are small and run slower


def absorbed_attention(
    query: torch.Tensor, images: torch.Tensor, key: EffectiveWeight, value: EffectiveWeight, batch: PackedBatch, scale: float
) -> torch.Tensor:
    """softmax(query keys^T * scale) values, [H, N, D], of packed tokens [H, N, D] over their own image of [B, S, in]."""
    onto = key.onto_inputs(query * scale)
    mixed: torch.Tensor = _OverImages.apply(onto, batch.cast(images, onto.dtype), batch)  # type: ignore[no-untyped-call]
    context = value.of_inputs(mixed)
    if value.bias is not None:
        context = context + value.bias.to(context.dtype).view(len(query), 1, -1)  # unscaled: attention weights sum to 1
    if key.bias is not None and key.bias.requires_grad:  # shared by all patches, so softmax cancels it; DDP needs its gradient
        context = context + (0 * key.bias.sum()).to(context.dtype)
    return context


class _OverImages(torch.autograd.Function):
    """softmax(tokens x^T) x for tokens [H, N, in], where x [S, in] is the image of each token's caption."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, images: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        mixed, saved = _zeros_for_filler(tokens, batch), []
        with torch.autocast(tokens.device.type, enabled=False):
            for rows, image in zip(batch.slices(), images, strict=True):
                weights = torch.softmax(_flat(tokens, rows) @ image.t(), -1)  # [H T, S]
                mixed[:, rows] = _by_heads(weights @ image, len(tokens))
                saved.append(weights)
        to_images = ctx.needs_input_grad[1]
        ctx.save_for_backward(images, tokens if to_images else None, *saved)
        ctx.batch = batch
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        images, tokens, *saved = ctx.saved_tensors
        to_tokens = _zeros_for_filler(gradient, ctx.batch)
        to_images = torch.empty_like(images) if ctx.needs_input_grad[1] else None
        for number, (rows, image, weights) in enumerate(zip(ctx.batch.slices(), images, saved, strict=True)):
            g = _flat(gradient, rows)
            scores = torch._softmax_backward_data(g @ image.t(), weights, -1, weights.dtype)
            to_tokens[:, rows] = _by_heads(scores @ image, len(gradient))
            if to_images is not None:
                torch.mm(scores.t(), _flat(tokens, rows), out=to_images[number])
                torch.addmm(to_images[number], weights.t(), g, out=to_images[number])  # torch's FLOP counter misses addmm_
        return to_tokens, to_images, None


def _zeros_for_filler(like: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """An uninitialised tensor shaped like `like` [H, N, in], with zeros at the filler tokens."""
    result = torch.empty_like(like)
    result[:, result.shape[1] - batch.filler :] = 0
    return result


def _flat(tokens: torch.Tensor, rows: slice) -> torch.Tensor:
    """The tokens of one caption, all heads: [H T, in]."""
    return tokens[:, rows].reshape(-1, tokens.shape[2])


def _by_heads(flat: torch.Tensor, heads: int) -> torch.Tensor:
    """[H T, in] as [H, T, in]."""
    return flat.view(heads, len(flat) // heads, flat.shape[1])
