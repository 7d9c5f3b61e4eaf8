"""Image files as pixel values on a device, read ahead in threads.

For a GPU, what an image processor does to each byte of a resized image is done there. It multiplies and normalises each byte
by itself, so that there are 256 results for each colour; the processor's own are looked up. Not one bit is different, and a
quarter of the bytes are copied. The threads have Pillow's decoding and resizing left, in which Python's lock is free.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend

from medgraft.backbones import Backbone
from medgraft.data.images import open_image
from medgraft.data.read_ahead import read_ahead

_BATCHES_AHEAD = 3
_MOST_THREADS = 8  # more would only wait for Python's lock, and so would the thread that launches the GPU's work
_STEPS = ("__call__", "preprocess", "_preprocess", "resize", "center_crop", "rescale", "normalize")


@dataclass(frozen=True)
class ReadImages:
    """Images of a batch as `ImageReader.pixel_values` takes them; no `values` if there are no `paths`."""

    paths: Sequence[Path]
    values: torch.Tensor | None


class ImageReader:
    """Reads images for a model on `device`: a batch ahead by one thread on a CPU, several batches by many for a GPU."""

    def __init__(self, backbone: Backbone, device: torch.device, *, threads: int | None = None):
        self._backbone, self._device = backbone, device
        self._threads = threads or (1 if device.type == "cpu" else _reader_threads())
        many = device.type != "cpu" or self._threads > 1
        self._table = ByteTable(backbone, device) if many and reads_bytes(backbone) else None

    def ahead(
        self, batches: Sequence[Sequence[Path]], select: Callable[[Sequence[Path]], Sequence[Path]] = lambda paths: paths
    ) -> Iterator[tuple[Sequence[Path], ReadImages]]:
        """Each batch with those of its images that `select`, called in a thread, gives."""
        if self._threads == 1:
            yield from read_ahead(batches, lambda paths: self._read(map, select(paths)))
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="images") as pool:
            yield from read_ahead(batches, lambda paths: self._read(pool.map, select(paths)), threads=2, ahead=_BATCHES_AHEAD)

    def pixel_values(self, read: ReadImages) -> torch.Tensor:
        """What `backbone.pixel_values` gives for the images, on the device."""
        assert read.values is not None
        values = read.values.to(self._device, non_blocking=read.values.is_pinned())
        return values if self._table is None else self._table.pixel_values(values)

    def _read(self, each: Callable[..., Iterator[Any]], paths: Sequence[Path]) -> ReadImages:
        """In a thread; `each` is a `map`."""
        if not paths:
            return ReadImages(paths, None)
        if self._table is None:
            return ReadImages(paths, self._pinned(self._backbone.pixel_values(list(each(open_image, paths)))))
        return ReadImages(paths, self._pinned(*each(self._table.read, paths)))

    def _pinned(self, *parts: torch.Tensor) -> torch.Tensor:
        """`parts` in one, for a GPU in memory from which that copies by itself."""
        if self._device.type != "cuda":
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        with torch.cuda.device(self._device):  # a new thread would start on the first GPU
            size = sum(len(part) for part in parts), *parts[0].shape[1:]
            return torch.cat(parts, out=torch.empty(size, dtype=parts[0].dtype, pin_memory=True))


class ByteTable:
    """The two halves of `backbone.pixel_values`: `read` on the CPU, `pixel_values` on the device."""

    def __init__(self, backbone: Backbone, device: torch.device):
        self._processor = backbone.image_processor
        ramp = np.tile(np.arange(256, dtype=np.uint8), (3, 1, 1))
        as_it_is = {"do_resize": False, "do_center_crop": False, "do_convert_rgb": False}
        values = self._processor([ramp], **as_it_is, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
        self._values = values[0, :, 0].flatten().to(device)  # [3 * 256]
        size = dict(self._processor.size or {})
        plain = size.get("height") and size.get("width") and not self._processor.do_center_crop
        self._size = (size["width"], size["height"]) if plain and self._processor.resample is not None else None
        self._first = torch.arange(3, device=device, dtype=torch.int32)[:, None, None] * 256

    def read(self, path: Path) -> torch.Tensor:
        """The image at `path` as bytes of the size that the model reads, [1, H, W, 3]."""
        image = open_image(path)
        if self._size is not None:
            resized = image.resize(self._size, resample=self._processor.resample)  # as transformers does it in the end
            return torch.from_numpy(np.array(resized))[None]
        batch = self._processor([image], do_rescale=False, do_normalize=False, return_tensors="pt")
        values: torch.Tensor = batch["pixel_values"]
        return values.permute(0, 2, 3, 1)

    def pixel_values(self, read: torch.Tensor) -> torch.Tensor:
        """What `backbone.pixel_values` gives, [B, 3, H, W], of bytes [B, H, W, 3] on the device."""
        places = read.permute(0, 3, 1, 2).int() + self._first
        looked_up: torch.Tensor = self._values.index_select(0, places.flatten())
        return looked_up.view(places.shape)


def reads_bytes(backbone: Backbone) -> bool:
    """Whether pixel values are made by transformers' usual steps, in their usual order, of images of one size."""
    processor = backbone.image_processor
    if type(backbone).pixel_values is not Backbone.pixel_values or not isinstance(processor, PilBackend):
        return False
    usual = all(getattr(type(processor), name) is getattr(PilBackend, name) for name in _STEPS)
    fixed = processor.do_center_crop or {"height", "width"} <= {n for n, v in dict(processor.size or {}).items() if v}
    return usual and bool(processor.do_resize) and bool(fixed) and not getattr(processor, "do_pad", None)


def _reader_threads() -> int:
    """The processors that this process may use but one, which launches the GPU's work."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable - 1, _MOST_THREADS))
