"""Image files as pixel values on a device, read ahead in threads.

For a GPU the threads give uint8 levels, and pixel values are computed on the device (data/levels.py). So the threads only
decode and resize with Pillow, which releases the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from medgraft.backbones import Backbone
from medgraft.data import levels
from medgraft.data.images import open_image
from medgraft.data.read_ahead import read_ahead
from medgraft.errors import DataError
from medgraft.types import ImageSource

_BATCHES_AHEAD = 3
_MOST_THREADS = 8  # more would compete for the GIL with the thread that launches GPU work


@dataclass(frozen=True)
class ReadImages:
    """Images of a batch as `ImageReader.pixel_values` takes them, which raises the `problem` if one could not be read.

    There are no `values` then, and none if there are no `paths`.
    """

    paths: Sequence[ImageSource]
    values: torch.Tensor | None
    problem: Exception | None = None


class ImageReader:
    """Reads images for a model on `device`: a batch ahead by one thread on a CPU, several batches by many for a GPU."""

    def __init__(self, backbone: Backbone, device: torch.device, *, threads: int | None = None):
        self._backbone, self._device = backbone, device
        self._threads = threads or (1 if device.type == "cpu" else _reader_threads())
        many = device.type != "cpu" or self._threads > 1
        self._levels = levels.pixel_levels(backbone) if many else None
        self._table = self._levels.table.to(device) if self._levels else None

    def ahead(
        self,
        batches: Iterable[Sequence[ImageSource]],
        select: Callable[[Sequence[ImageSource]], Sequence[ImageSource]] = lambda images: images,
    ) -> Generator[tuple[Sequence[ImageSource], ReadImages]]:
        """Each batch with those of its images that `select`, called in a thread, gives."""
        if self._threads == 1:
            yield from read_ahead(batches, lambda paths: self._read(map, select, paths))
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="images") as pool:
            yield from read_ahead(batches, lambda paths: self._read(pool.map, select, paths), threads=2, ahead=_BATCHES_AHEAD)

    def pixel_values(self, read: ReadImages) -> torch.Tensor:
        """What `backbone.pixel_values` gives for the images, on the device."""
        if read.problem is not None:
            raise read.problem
        assert read.values is not None
        values = read.values.to(self._device, non_blocking=read.values.is_pinned())
        return values if self._table is None else levels.pixel_values(values, self._table)

    def _read(
        self,
        each: Callable[..., Iterator[Any]],
        select: Callable[[Sequence[ImageSource]], Sequence[ImageSource]],
        batch: Sequence[ImageSource],
    ) -> ReadImages:
        """In a thread; `each` is a `map`."""
        try:
            paths, split = select(batch), self._levels
            if not paths:
                return ReadImages(paths, None)
            if split is None:
                return ReadImages(paths, self._pinned(self._backbone.pixel_values(list(each(open_image, paths)))))
            return ReadImages(paths, self._pinned(*each(lambda path: split.levels([open_image(path)]), paths)))
        except (DataError, ValueError) as problem:
            return ReadImages(batch, None, problem)

    def _pinned(self, *parts: torch.Tensor) -> torch.Tensor:
        """`parts` in one, for a GPU in memory from which that copies by itself."""
        if self._device.type != "cuda":
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        with torch.cuda.device(self._device):  # a new thread would start on the first GPU
            size = sum(len(part) for part in parts), *parts[0].shape[1:]
            return torch.cat(parts, out=torch.empty(size, dtype=parts[0].dtype, pin_memory=True))


def _reader_threads() -> int:
    """The processors that this process may use but one, which launches the GPU's work."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable - 1, _MOST_THREADS))
