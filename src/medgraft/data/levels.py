"""Images as the 256 levels that they have after resizing, and the table that makes pixel values of them.

Image processors resize an image, which leaves 8 bits a channel, and then scale and normalise each level for itself. So pixel
values are a table's, one row a channel, bit for bit. Beside an accelerator the batch carries the levels, a quarter of the bytes
for worker processes, cache and copy to the device, and the table is applied there; the processor's arithmetic in numpy, half
of its time, is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from medgraft.backbones import Backbone


@dataclass(frozen=True)
class PixelLevels:
    """A backbone's image processor in two parts: to levels [B, C, H, W] in uint8, and from levels to pixel values."""

    backbone: Backbone
    table: torch.Tensor  # [C, 256]

    def levels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Resized images [B, C, H, W] in uint8."""
        return _processed(self.backbone, images, do_rescale=False, do_normalize=False)


def pixel_values(levels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Pixel values [B, C, H, W] of `levels` by `table` [C, 256], where both lie."""
    first = torch.arange(0, table.numel(), table.shape[1], dtype=torch.int32, device=levels.device).view(-1, 1, 1)
    return table.flatten().index_select(0, (levels + first).flatten()).view(levels.shape)


def pixel_levels(backbone: Backbone) -> PixelLevels | None:
    """The two parts, None if the processor is none that maps levels one by one: tried on an image of random pixels."""
    if type(backbone).pixel_values is not Backbone.pixel_values:
        return None
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    random = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    try:
        table = _processed(backbone, [Image.fromarray(every)], do_resize=False, do_center_crop=False, do_pad=False)
        split = PixelLevels(backbone, table[0].reshape(3, 256).clone())
        levels = split.levels([random])
    except (KeyError, RuntimeError, TypeError, ValueError):  # a processor without these options, or of other shapes
        return None
    same = levels.dtype == torch.uint8 and torch.equal(pixel_values(levels, split.table), backbone.pixel_values([random]))
    return split if same else None


def _processed(backbone: Backbone, images: Sequence[Image.Image], **options: bool) -> torch.Tensor:
    values: torch.Tensor = backbone.image_processor(list(images), return_tensors="pt", **options)["pixel_values"]
    return values
