"""From examples to batches: images decoded and captions chosen, then one backbone's tensors."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset as TorchDataset

from medgraft.backbones import Backbone
from medgraft.data.augmentation import Views, recurs
from medgraft.data.images import open_image
from medgraft.data.levels import PixelLevels
from medgraft.types import Example, ImageSource

if TYPE_CHECKING:
    from PIL.Image import Image


class CaptionPairs(TorchDataset[tuple[Example, str]]):
    """Every (image, caption) pair: an image with several captions occurs once for each. With `views` images are augmented.

    A study with more images is one too.
    """

    def __init__(self, examples: Sequence[Example], views: Views | None = None):
        self.examples = examples
        self._places, self._captions = array("I"), array("I")  # of each pair: which example, and which of its captions
        for place, example in enumerate(examples):
            chosen = [number for number, caption in enumerate(example.captions) if caption]
            self._places.extend([place] * len(chosen))
            self._captions.extend(chosen)
        self._views = views
        self._epoch = torch.zeros((), dtype=torch.int64)
        if views is not None:
            self._epoch.share_memory_()  # type: ignore[no-untyped-call] # workers outlive an epoch

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Example, str]:
        example = self.examples[self._places[index]]
        caption = example.captions[self._captions[index]]
        if self._views is None:
            return example, caption
        image, *more = (self._views.view(image, int(self._epoch), index) for image in example.images)
        return replace(example, image=image, more_images=tuple(more)), caption

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, which decides the views."""
        self._epoch.fill_(epoch)


class PixelCache:
    """Images as model input, decoded and resized once and stored while they fit `limit_bytes`; the rest is made anew.

    Augmented images are stored if their views are fixed.
    With `levels` a batch is uint8 levels, [B, H, W, 3], instead of pixel values (see data/levels.py).
    """

    def __init__(self, backbone: Backbone, limit_bytes: int, levels: PixelLevels | None = None):
        self._make: Callable[[Sequence[Image]], torch.Tensor] = levels.levels if levels else backbone.pixel_values
        self._free_bytes = limit_bytes
        self._stored: dict[ImageSource, torch.Tensor] = {}
        self._shared = _SharedImages({}, torch.empty(0), torch.empty(0))

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory that only forked processes share."""
        return {**self.__dict__, "_shared": _SharedImages({}, torch.empty(0), torch.empty(0))}

    def share(self, paths: Iterable[ImageSource]) -> None:
        """Set the cache's memory aside for the first of `paths`, to be filled and read by processes forked from this one.

        A cache for each of them would have the images that came to it by chance, and of W processes find one in W.
        """
        left = iter(paths)
        first = next(left, None)
        if first is not None and self._free_bytes > 0:
            image = self._make([open_image(first)])[0]
            count = self._free_bytes // image.nbytes
            chosen = list(dict.fromkeys(islice(chain([first], left), count)))
            if chosen:
                self._shared = _SharedImages.of(chosen, image)
        self._free_bytes = 0

    def batch(self, paths: Sequence[ImageSource]) -> torch.Tensor:
        """The images as [B, 3, H, W], or their levels."""
        known = {path: image for path in dict.fromkeys(paths) if (image := self._find(path)) is not None}
        new = [path for path in dict.fromkeys(paths) if path not in known]
        made = dict(zip(new, self._make([open_image(path) for path in new]), strict=True)) if new else {}
        for path, pixels in made.items():
            self._store(path, pixels)
        return torch.stack([made[path] if path in made else known[path] for path in paths])

    def _find(self, path: ImageSource) -> torch.Tensor | None:
        shared = self._shared.get(path)
        return shared if shared is not None else self._stored.get(path)

    def _store(self, path: ImageSource, pixels: torch.Tensor) -> None:
        if not recurs(path) or self._shared.put(path, pixels) or pixels.nbytes > self._free_bytes:
            return
        self._stored[path] = pixels.clone()
        self._free_bytes -= pixels.nbytes


@dataclass(frozen=True)
class _SharedImages:
    """Images [N, ...] in memory that forked processes share, the place of each, and which of them are there [N].

    Two processes that make the same image write the same bytes, and each says that it is there after it has written them.
    """

    places: Mapping[ImageSource, int]
    images: torch.Tensor
    there: torch.Tensor

    @classmethod
    def of(cls, paths: Sequence[ImageSource], like: torch.Tensor) -> _SharedImages:
        """Room for images of `paths` that are of the shape and dtype of `like`; memory is taken as it is filled."""
        images = torch.frombuffer(mmap.mmap(-1, len(paths) * like.nbytes), dtype=like.dtype).view(len(paths), *like.shape)
        there = torch.frombuffer(mmap.mmap(-1, len(paths)), dtype=torch.uint8)
        return cls({path: place for place, path in enumerate(paths)}, images, there)

    def get(self, path: ImageSource) -> torch.Tensor | None:
        """The image, None if it is not there yet or has no place."""
        place = self.places.get(path)
        return self.images[place] if place is not None and self.there[place] else None

    def put(self, path: ImageSource, image: torch.Tensor) -> bool:
        """Whether the image has a place, where it is now."""
        place = self.places.get(path)
        if place is None or image.shape != self.images.shape[1:]:
            return False
        self.images[place] = image
        self.there[place] = 1
        return True
