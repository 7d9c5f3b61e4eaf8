"""A batch's captions as one row of words, so that nothing is computed for padding nor for words that predict no label.

In bf16 oneDNN compiles a kernel for every new number of rows, which takes up to 30 ms for a matrix of BLIP's, and forgets the
oldest of a thousand. So the row can be filled up to a multiple: few numbers of words occur then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from medgraft.backbones.base import TextBatch

IGNORED = -100
WORDS_MULTIPLE = 32  # leaves few numbers of words, and less filler than that


@dataclass(frozen=True)
class Packing:
    """How the words of B captions stand in a row of N, one after another; `filler` words that nothing reads are the last.

    `places` [N - filler] is where they stand in padded rows [B T]. `rounded` are the images' features [B, S, C] as autocast
    rounds them.
    """

    lengths: tuple[int, ...]
    places: torch.Tensor
    filler: int = 0
    rounded: torch.Tensor | None = None

    def slices(self) -> list[slice]:
        """Where each caption is in the row."""
        return [slice(end - length, end) for end, length in zip(accumulate(self.lengths), self.lengths, strict=True)]

    def padded(self, words: torch.Tensor) -> torch.Tensor:
        """Packed `words` [1, N, C] as [B, T, C], 0 where there is none."""
        batch, longest, width = len(self.lengths), max(self.lengths), words.shape[2]
        rows = words.new_zeros(batch * longest, width)
        return rows.index_copy(0, self.places, words[0, : len(self.places)]).view(batch, longest, width)

    def packed(self, rows: torch.Tensor) -> torch.Tensor:
        """Padded `rows` [B, T, C] as [1, N, C], filler 0."""
        return fill(rows.flatten(0, 1).index_select(0, self.places), self.filler)[None]

    def over(self, images: torch.Tensor) -> Packing:
        """The same for words over `images` [B, S, C], which under autocast are rounded here, once for all layers."""
        kind = images.device.type
        if not torch.is_autocast_enabled(kind):
            return self
        return replace(self, rounded=images.detach().to(torch.get_autocast_dtype(kind)))

    def cast(self, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`images` in `dtype`, by the copy of `over` if that has it; gradients are summed as with a cast for each layer."""
        if self.rounded is None or self.rounded.dtype != dtype:
            return images.to(dtype)
        rounded: torch.Tensor = _Cast.apply(images, self.rounded)  # type: ignore[no-untyped-call]
        return rounded

    @cached_property
    def causal_mask(self) -> torch.Tensor:
        """[T, T], to be added to scores; the only one that is needed, as padding comes after every word."""
        longest = max(self.lengths)
        return torch.full((longest, longest), -torch.inf, device=self.places.device).triu(1)


@dataclass(frozen=True)
class PackedText:
    """Packed captions: `input_ids` and `position_ids` [1, N], and `targets` [N], the label that a word predicts or -100."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    packing: Packing


class _Cast(torch.autograd.Function):
    """A tensor's copy in another dtype, made beforehand."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        ctx.dtype = tensor.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.to(ctx.dtype), None


def fill(rows: torch.Tensor, count: int, value: int = 0) -> torch.Tensor:
    """`rows` [N, ...] and `count` more, all `value`."""
    return torch.cat([rows, rows.new_full((count, *rows.shape[1:]), value)]) if count else rows


def pack(text: TextBatch, multiple: int = 1) -> PackedText:
    """`text`, padded on the right, without what no label depends on in a causal decoder: padding, and the last word.

    N is a multiple of `multiple`.
    """
    targets = torch.cat([text.labels[:, 1:], torch.full_like(text.labels[:, :1], IGNORED)], dim=1)
    needed = (targets != IGNORED).flip(1).cumsum(1).flip(1) > 0  # [B, T]: this word or a later one predicts a label
    lengths = tuple(needed.sum(1).tolist())
    row, position = needed.nonzero(as_tuple=True)
    filler = -len(row) % multiple
    packing = Packing(lengths, row * max(lengths) + position, filler)
    ids = fill(text.input_ids[needed], filler)
    return PackedText(ids[None], fill(position, filler)[None], fill(targets[needed], filler, IGNORED), packing)
