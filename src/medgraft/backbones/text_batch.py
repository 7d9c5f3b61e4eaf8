"""Batches of tokenised captions, and the loss of predicting them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class TextBatch:
    """Tokenised captions: `input_ids` and `attention_mask` [B, T], and `labels` [B, T], -100 where nothing is predicted.

    In models with a text encoder (T5) `labels` are [B, T'] and hold the caption alone, without the prompt.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def rows(self, rows: Sequence[int]) -> TextBatch:
        """Those rows of this batch."""
        return TextBatch(self.input_ids[rows], self.attention_mask[rows], self.labels[rows])

    def to(self, device: torch.device) -> TextBatch:
        """This batch on `device`."""
        return TextBatch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of token ids on the right: (ids, mask), both [B, T] with T the longest row."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], dtype=torch.long)
    return ids, mask


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits [B, T, V] for the next position's labels [B, T], where those are not -100."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
