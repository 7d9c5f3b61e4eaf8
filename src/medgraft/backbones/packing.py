"""A batch's captions as one row of words, so that nothing is computed for padding nor for words that predict no label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from medgraft.backbones.base import TextBatch

IGNORED = -100


@dataclass(frozen=True)
class Packing:
    """How N words of B captions stand in a row one after another. `places` [N] is where they stand in padded rows [B T]."""

    lengths: tuple[int, ...]
    places: torch.Tensor

    def slices(self) -> list[slice]:
        """Where each caption is in the row."""
        return [slice(end - length, end) for end, length in zip(accumulate(self.lengths), self.lengths, strict=True)]

    def padded(self, words: torch.Tensor) -> torch.Tensor:
        """Packed `words` [1, N, C] as [B, T, C], 0 where there is none."""
        batch, longest, width = len(self.lengths), max(self.lengths), words.shape[2]
        return words.new_zeros(batch * longest, width).index_copy(0, self.places, words[0]).view(batch, longest, width)

    def packed(self, rows: torch.Tensor) -> torch.Tensor:
        """Padded `rows` [B, T, C] as [1, N, C]."""
        return rows.flatten(0, 1).index_select(0, self.places)[None]

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


def pack(text: TextBatch) -> PackedText:
    """`text`, padded on the right, without what no label depends on in a causal decoder: padding, and the last word."""
    targets = torch.cat([text.labels[:, 1:], torch.full_like(text.labels[:, :1], IGNORED)], dim=1)
    needed = (targets != IGNORED).flip(1).cumsum(1).flip(1) > 0  # [B, T]: this word or a later one predicts a label
    lengths = tuple(needed.sum(1).tolist())
    row, position = needed.nonzero(as_tuple=True)
    packing = Packing(lengths, row * max(lengths) + position)
    return PackedText(text.input_ids[needed][None], position[None], targets[needed], packing)
