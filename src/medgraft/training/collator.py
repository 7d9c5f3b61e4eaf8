"""From examples to the tensors of a batch: stored features where there are some, pixels for the rest, and the captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import pad

from medgraft.backbones import Backbone, TextBatch
from medgraft.data.collate import PixelCache
from medgraft.features import FeatureSupply
from medgraft.types import Example


@dataclass(frozen=True)
class Collator:
    """Pairs to the tensors that CaptioningModule takes: text [B, T] with T the batch's longest, and images.

    `features` [K, S, C] are those of the rows `feature_rows` [K]; `pixel_values` are of the other rows. Either is left out
    if it would be empty. Where all images of a batch are in `resident`, the rows of ResidentFeatures, `resident_rows` [B]
    stands for them. T is filled up to `pad_to_multiple_of`, which leaves the loss as it is.
    """

    backbone: Backbone
    pixels: PixelCache
    prompt: str
    max_tokens: int
    supply: FeatureSupply | None = None
    resident: Mapping[Path, int] = field(default_factory=dict)
    pad_to_multiple_of: int = 1

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> dict[str, torch.Tensor]:
        """See the class."""
        text = self.backbone.text_batch([caption for _, caption in pairs], prompt=self.prompt, max_tokens=self.max_tokens)
        text = self._filled_up(text)
        batch = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "labels": text.labels}
        paths = [example.image for example, _ in pairs]
        if all(path in self.resident for path in paths):
            return batch | {"resident_rows": torch.tensor([self.resident[path] for path in paths])}
        stored = [self.supply.stored(path) if self.supply else None for path in paths]
        rows = [row for row, feature in enumerate(stored) if feature is not None]
        if rows:
            batch["features"] = torch.stack([feature for feature in stored if feature is not None])
            batch["feature_rows"] = torch.tensor(rows)
        if len(rows) < len(pairs):
            batch["pixel_values"] = self.pixels.batch([path for path, f in zip(paths, stored, strict=True) if f is None])
        return batch

    def _filled_up(self, text: TextBatch) -> TextBatch:
        length = text.input_ids.shape[1]
        missing = min(-length % self.pad_to_multiple_of, max(self.backbone.positions - length, 0))
        if missing == 0:
            return text
        labels = text.labels  # in a model with a text encoder of their own length
        return TextBatch(
            pad(text.input_ids, (0, missing), value=self.backbone.pad_id),
            pad(text.attention_mask, (0, missing)),
            pad(labels, (0, missing), value=-100) if labels.shape == text.input_ids.shape else labels,
        )
