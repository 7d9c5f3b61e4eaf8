"""From examples to batches: images decoded and captions chosen, then one backbone's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset as TorchDataset

from medgraft.backbones import Backbone
from medgraft.data.images import open_image
from medgraft.types import Example


class CaptionPairs(TorchDataset[tuple[Example, str]]):
    """Every (image, caption) pair: an image with several captions occurs once for each."""

    def __init__(self, examples: Sequence[Example]):
        self.pairs = [(example, caption) for example in examples for caption in example.captions if caption]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Example, str]:
        return self.pairs[index]


@dataclass(frozen=True)
class Collator:
    """Pairs to the tensors that CaptioningModule takes: pixel_values [B, 3, H, W], the rest [B, T], T the batch's longest."""

    backbone: Backbone
    prompt: str
    max_tokens: int

    def __call__(self, pairs: Sequence[tuple[Example, str]]) -> dict[str, torch.Tensor]:
        """See the class."""
        text = self.backbone.text_batch([caption for _, caption in pairs], prompt=self.prompt, max_tokens=self.max_tokens)
        return {
            "pixel_values": self.backbone.pixel_values([open_image(example.image) for example, _ in pairs]),
            "input_ids": text.input_ids,
            "attention_mask": text.attention_mask,
            "labels": text.labels,
        }
