"""From examples to the tensors of a batch: stored features where there are some, pixels for the rest, and the captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medgraft.backbones import Backbone
from medgraft.data.collate import PixelCache
from medgraft.features import CachedFeatures
from medgraft.types import Example


@dataclass(frozen=True)
class Collator:
    """Pairs to the tensors that CaptioningModule takes: text [B, T] with T the batch's longest, and images.

    `features` [K, S, C] are those of the rows `feature_rows` [K]; `pixel_values` are of the other rows. Either is left out
    if it would be empty.
    """

    backbone: Backbone
    pixels: PixelCache
    prompt: str
    max_tokens: int
    cached: CachedFeatures | None = None

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> dict[str, torch.Tensor]:
        """See the class."""
        text = self.backbone.text_batch([caption for _, caption in pairs], prompt=self.prompt, max_tokens=self.max_tokens)
        paths = [example.image for example, _ in pairs]
        stored = [self.cached.stored(path) if self.cached else None for path in paths]
        rows = [row for row, feature in enumerate(stored) if feature is not None]
        batch = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "labels": text.labels}
        if rows:
            batch["features"] = torch.stack([feature for feature in stored if feature is not None])
            batch["feature_rows"] = torch.tensor(rows)
        if len(rows) < len(pairs):
            batch["pixel_values"] = self.pixels.batch([path for path, f in zip(paths, stored, strict=True) if f is None])
        return batch
