"""Turns examples into batch tensors: stored features where available, pixel values otherwise, and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad

from medgraft.backbones import Backbone, TextBatch
from medgraft.data.collate import PixelCache
from medgraft.features import CachedFeatures
from medgraft.types import Example, ImageSource, own_prompts


@dataclass(frozen=True)
class Collator:
    """Collates pairs into the tensors that CaptioningModule takes: text [B, T], with T the longest of the batch, and images.

    There are N images: one for each row, or those of each row's study one after the other. `features` [K, S, C] belong to the
    images `feature_rows` [K], and `pixel_values` to the others; each is left out if empty. If all images of a batch are in
    `resident`, which maps paths to rows of ResidentFeatures, `feature_rows` [N] are those rows, and there are neither
    `features` nor `pixel_values`. T is padded to `pad_to_multiple_of`; the loss is the same.
    `prompts` of each image are there if examples have their own and a seam depends on the prompt. `image_counts` are there if
    rows differ in their number of images.
    """

    backbone: Backbone
    pixels: PixelCache
    prompt: str
    max_tokens: int
    cached: CachedFeatures | None = None
    resident: Mapping[ImageSource, int] = field(default_factory=dict)
    pad_to_multiple_of: int = 1

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> dict[str, Any]:
        """Collate `pairs`; see the class."""
        prompts = own_prompts([example.prompt for example, _ in pairs], self.prompt)
        text = self.backbone.text_batch([caption for _, caption in pairs], prompt=prompts, max_tokens=self.max_tokens)
        text = self._filled_up(text)
        batch: dict[str, Any] = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, "labels": text.labels}
        paths = [image for example, _ in pairs for image in example.images]
        counts = [len(example.images) for example, _ in pairs]
        if not isinstance(prompts, str) and any(seam.depends_on_prompt for seam in self.backbone.seams):
            batch["prompts"] = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        if len(set(counts)) > 1:
            batch["image_counts"] = counts
        if all(path in self.resident for path in paths):
            return batch | {"feature_rows": torch.tensor([self.resident[path] for path in paths])}
        stored = self.cached.stored(paths) if self.cached else [None] * len(paths)
        rows = [row for row, feature in enumerate(stored) if feature is not None]
        if rows:
            batch["features"] = torch.stack([feature for feature in stored if feature is not None])
            batch["feature_rows"] = torch.tensor(rows)
        if len(rows) < len(paths):
            batch["pixel_values"] = self.pixels.batch([path for path, f in zip(paths, stored, strict=True) if f is None])
        return batch

    def _filled_up(self, text: TextBatch) -> TextBatch:
        length = text.input_ids.shape[1]
        missing = min(-length % self.pad_to_multiple_of, max(self.backbone.max_positions - length, 0))
        if missing == 0:
            return text
        labels = text.labels  # models with a text encoder have labels of another length
        return TextBatch(
            pad(text.input_ids, (0, missing), value=self.backbone.pad_id),
            pad(text.attention_mask, (0, missing)),
            pad(labels, (0, missing), value=-100) if labels.shape == text.input_ids.shape else labels,
        )
