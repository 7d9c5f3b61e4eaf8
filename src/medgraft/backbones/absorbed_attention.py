"""Cross-attention whose key and value projections are applied to the words instead of the image.

A word's score for a patch is q (W x)^T = (q W) x^T, and what it takes from the patches is p (x W^T) = (p x) W^T, so that
the patches' keys and values need not be computed (the absorption of Multi-head Latent Attention, DeepSeek-AI 2024, arXiv
2405.04434, section 2.1.2, for training). With C channels in H heads, S patches and T words, two products of S C^2
multiplications become two of H T S C: fewer as long as a caption has less than about C / H words. Going back it is the same
if W is trained; if it is frozen and so are the patches, keys and values would cost nothing there, and half as many words pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from medgraft.backbones.packing import Packing
from medgraft.projection import Projection


def pays(key: Projection, value: Projection, images: torch.Tensor, lengths: Sequence[int], heads: int) -> bool:
    """Whether it takes less time for [B, S, in] `images` than keys and values, gradients included: by multiplications."""
    back = torch.is_grad_enabled()
    trained = back and (key.trained or value.trained)
    through = back and images.requires_grad
    (batch, patches, width), (out, _), words = images.shape, key.shape, sum(lengths)
    projections = 2 * batch * patches * width * out * (1 + trained + through) + 2 * words * patches * out * (1 + 2 * back)
    absorbed = 2 * words * width * out * (1 + back + trained) + 2 * heads * words * patches * width * (1 + back + through)
    adapted = key.a is not None or value.a is not None  # LoRA over patches moves much memory, and is not counted
    return absorbed < (1.0 if adapted else 0.75) * projections  # products of one caption are small, and run slower


def absorbed_attention(
    query: torch.Tensor, images: torch.Tensor, key: Projection, value: Projection, packing: Packing, scale: float
) -> torch.Tensor:
    """softmax(query keys^T * scale) values for packed words [H, N, D] over their own image of [B, S, in]: [H, N, D]."""
    onto = key.onto_inputs(query * scale)
    taken: torch.Tensor = _OverImages.apply(onto, packing.cast(images, onto.dtype), packing)  # type: ignore[no-untyped-call]
    context = value.of_inputs(taken)
    if value.bias is not None:
        context = context + value.bias.to(context.dtype).view(len(query), 1, -1)  # whole, as weights sum to 1
    if key.bias is not None and key.bias.requires_grad:  # cancels in softmax, as all patches share it; DDP wants its zeros
        context = context + (0 * key.bias.sum()).to(context.dtype)
    return context


class _OverImages(torch.autograd.Function):
    """softmax(words x^T) x, of words [H, N, in] and for each caption its image x [S, in]."""

    @staticmethod
    def forward(ctx: Any, words: torch.Tensor, images: torch.Tensor, packing: Packing) -> torch.Tensor:
        taken, kept = _room(words, packing), []
        with torch.autocast(words.device.type, enabled=False):
            for rows, image in zip(packing.slices(), images, strict=True):
                weights = torch.softmax(_flat(words, rows) @ image.t(), -1)  # [H T, S]
                taken[:, rows] = _by_heads(weights @ image, len(words))
                kept.append(weights)
        through = ctx.needs_input_grad[1]
        ctx.save_for_backward(images, words if through else None, *kept)
        ctx.packing = packing
        return taken

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        images, words, *kept = ctx.saved_tensors
        to_words = _room(gradient, ctx.packing)
        to_images = torch.empty_like(images) if ctx.needs_input_grad[1] else None
        for number, (rows, image, weights) in enumerate(zip(ctx.packing.slices(), images, kept, strict=True)):
            g = _flat(gradient, rows)
            scores = torch._softmax_backward_data(g @ image.t(), weights, -1, weights.dtype)
            to_words[:, rows] = _by_heads(scores @ image, len(gradient))
            if to_images is not None:
                torch.mm(scores.t(), _flat(words, rows), out=to_images[number])
                torch.addmm(to_images[number], weights.t(), g, out=to_images[number])  # addmm_ is no FLOP to torch
        return to_words, to_images, None


def _room(like: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Room for [H, N, in], 0 where the words are filler."""
    room = torch.empty_like(like)
    room[:, room.shape[1] - packing.filler :] = 0
    return room


def _flat(words: torch.Tensor, rows: slice) -> torch.Tensor:
    """One caption's words of every head, [H T, in]."""
    return words[:, rows].reshape(-1, words.shape[2])


def _by_heads(flat: torch.Tensor, heads: int) -> torch.Tensor:
    """Back to [H, T, in]."""
    return flat.view(heads, len(flat) // heads, flat.shape[1])
