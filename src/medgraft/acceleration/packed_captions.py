"""A batch's captions packed into one row of tokens, without padding and without tokens that predict no label.

In bf16 oneDNN compiles a kernel for every new number of rows, which takes up to 30 ms for a matrix of BLIP's, and caches a
thousand of them. The row can therefore be filled up to a multiple, so that few different lengths occur.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from medgraft.backbones import TextBatch

IGNORED = -100


@dataclass(frozen=True)
class PackedBatch:
    """The tokens of B captions, concatenated in one row of N; the last `filler` tokens are padding that nothing reads.

    `input_ids` and `position_ids` are [1, N]; `targets` [N] are the labels that the tokens predict, or -100. `places`
    [N - filler] are the tokens' indices in padded rows [B T]. `images` are features [B, S, C] in autocast's dtype.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    lengths: tuple[int, ...]
    places: torch.Tensor
    filler: int = 0
    images: torch.Tensor | None = None

    def slices(self) -> list[slice]:
        """The slice of the row that holds each caption."""
        return [slice(end - length, end) for end, length in zip(accumulate(self.lengths), self.lengths, strict=True)]

    def padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Packed `tokens` [1, N, C] as padded rows [B, T, C], with zeros as padding."""
        count, longest, width = len(self.lengths), max(self.lengths), tokens.shape[2]
        rows = tokens.new_zeros(count * longest, width)
        return rows.index_copy(0, self.places, tokens[0, : len(self.places)]).view(count, longest, width)

    def packed(self, rows: torch.Tensor) -> torch.Tensor:
        """Padded `rows` [B, T, C] as packed tokens [1, N, C], with zeros as filler."""
        return fill(rows.flatten(0, 1).index_select(0, self.places), self.filler)[None]

    def over(self, images: torch.Tensor) -> PackedBatch:
        """This batch with `images` [B, S, C], cast here to autocast's dtype once for all layers."""
        kind = images.device.type
        if not torch.is_autocast_enabled(kind):
            return self
        return replace(self, images=images.detach().to(torch.get_autocast_dtype(kind)))

    def cast(self, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`images` in `dtype`, taken from the copy of `over` if it has that dtype; gradients are those of a cast per layer."""
        if self.images is None or self.images.dtype != dtype:
            return images.to(dtype)
        rounded: torch.Tensor = _Cast.apply(images, self.images)  # type: ignore[no-untyped-call]
        return rounded

    @cached_property
    def causal_mask(self) -> torch.Tensor:
        """The causal mask [T, T] to add to scores. No padding mask is needed, as padding follows all tokens."""
        longest = max(self.lengths)
        return torch.full((longest, longest), -torch.inf, device=self.places.device).triu(1)


class _Cast(torch.autograd.Function):
    """A cast that returns an existing copy in the other dtype."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        ctx.dtype = tensor.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.to(ctx.dtype), None


def fill(rows: torch.Tensor, count: int, value: int = 0) -> torch.Tensor:
    """`rows` [N, ...] followed by `count` rows of `value`."""
    return torch.cat([rows, rows.new_full((count, *rows.shape[1:]), value)]) if count else rows


def pack(text: TextBatch, pad_to_multiple_of: int = 1) -> PackedBatch:
    """Pack `text`, padded on the right, without padding and last tokens: no label of a causal decoder depends on them."""
    targets = torch.cat([text.labels[:, 1:], torch.full_like(text.labels[:, :1], IGNORED)], dim=1)
    needed = (targets != IGNORED).flip(1).cumsum(1).flip(1) > 0  # [B, T]: this token or a later one predicts a label
    lengths = tuple(needed.sum(1).tolist())
    row, position = needed.nonzero(as_tuple=True)
    filler = -len(row) % pad_to_multiple_of
    return PackedBatch(
        fill(text.input_ids[needed], filler)[None], fill(position, filler)[None], fill(targets[needed], filler, IGNORED),
        lengths, row * max(lengths) + position, filler,
    )  # fmt: skip
