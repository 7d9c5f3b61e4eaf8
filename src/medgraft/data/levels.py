"""Images as the 256 levels that they have after resizing, and the table that makes pixel values of them.

Image processors resize to 8 bits a channel, and then rescale and normalise each level independently. So a table with a row
per channel gives the same pixel values, bit for bit. With an accelerator the batch carries levels, a quarter of the bytes for
workers, cache and copies, and the table is applied on the device; this also saves half of the processor's CPU time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from medgraft.backbones import Backbone


@dataclass(frozen=True)
class PixelLevels:
    """A backbone's image processor in two parts: `levels`, and `pixel_values` of them by `table`.

    `size` (width, height) is what images are resized to if that is all that is done to them; None leaves it to the processor.
    """

    backbone: Backbone
    table: torch.Tensor  # [C, 256]
    size: tuple[int, int] | None = None

    def levels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Resized images [B, H, W, C] in uint8."""
        if self.size is None:
            return _processed(self.backbone, images, do_rescale=False, do_normalize=False).permute(0, 2, 3, 1)
        resample = self.backbone.image_processor.resample
        return torch.from_numpy(np.stack([np.asarray(image.resize(self.size, resample=resample)) for image in images]))


def pixel_values(levels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Pixel values [B, C, H, W] of `levels` [B, H, W, C] by `table` [C, 256], where both lie."""
    first = torch.arange(0, table.numel(), table.shape[1], dtype=torch.int32, device=levels.device).view(-1, 1, 1)
    places = levels.permute(0, 3, 1, 2).contiguous() + first
    return table.flatten().index_select(0, places.flatten()).view(places.shape)


def pixel_levels(backbone: Backbone) -> PixelLevels | None:
    """The two parts; None if the processor does not map each level independently.

    Tested with images of random pixels: one with every level and one with few, in two shapes.
    """
    if type(backbone).pixel_values is not Backbone.pixel_values:
        return None
    every, random = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2), np.random.default_rng(0)
    samples = [((70, 90, 3), 0, 256), ((120, 50, 3), 60, 180)]
    images = [Image.fromarray(random.integers(low, high, shape, dtype=np.uint8)) for shape, low, high in samples]
    try:
        table = _processed(backbone, [Image.fromarray(every)], do_resize=False, do_center_crop=False, do_pad=False)
        split = PixelLevels(backbone, table[0].reshape(3, 256).clone())
        levels, expected = split.levels(images), backbone.pixel_values(images)
    except (KeyError, RuntimeError, TypeError, ValueError):  # a processor without these options, or of other shapes
        return None
    if levels.dtype != torch.uint8 or not torch.equal(pixel_values(levels, split.table), expected):
        return None
    resized = replace(split, size=(levels.shape[2], levels.shape[1]))  # in a quarter less time
    return resized if torch.equal(resized.levels(images), levels) else split


def _processed(backbone: Backbone, images: Sequence[Image.Image], **options: bool) -> torch.Tensor:
    values: torch.Tensor = backbone.image_processor(list(images), return_tensors="pt", **options)["pixel_values"]
    return values
