"""From examples to batches: images decoded and captions chosen, then one backbone's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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


class PixelCache:
    """Images as model input, decoded and resized once and kept while they fit `limit_bytes`; the rest is made anew."""

    def __init__(self, backbone: Backbone, limit_bytes: int):
        self._backbone = backbone
        self._room = limit_bytes
        self._kept: dict[Path, torch.Tensor] = {}

    def batch(self, paths: Sequence[Path]) -> torch.Tensor:
        """The images as [B, 3, H, W]."""
        new = [path for path in dict.fromkeys(paths) if path not in self._kept]
        made = dict(zip(new, self._backbone.pixel_values([open_image(path) for path in new]), strict=True)) if new else {}
        for path, pixels in made.items():
            if pixels.nbytes <= self._room:
                self._kept[path] = pixels.clone()
                self._room -= pixels.nbytes
        return torch.stack([made[path] if path in made else self._kept[path] for path in paths])
