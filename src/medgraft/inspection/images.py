"""Statistics of images, and a few of them as a model sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from medgraft.backbones import Backbone
from medgraft.data.images import image_kind, inspect_images, open_image
from medgraft.data.levels import pixel_levels
from medgraft.each_image import EachImage
from medgraft.inspection.captions import percentiles
from medgraft.inspection.result import ImageStatistics
from medgraft.types import SPLITS, CaptionData, Example, ImageSource, Leak

T = TypeVar("T")

_AT_ONCE = 1000
_SAMPLE = 1000  # images whose format and mode are read
_SHEET = 48
_SIDES = (128, 256, 512, 1024, 2048)  # px
_FREQUENT = 6
_PAIRS = 4


@dataclass(frozen=True)
class SheetImage:
    """An image of the contact sheet: what is stored, and the `picture` that the model sees."""

    example: Example
    size: tuple[int, int]
    format: str
    mode: str
    picture: Image.Image


@dataclass(frozen=True)
class LeakingPair:
    """An image of a later split and its counterpart in an earlier one, as the model sees them."""

    leak: Leak
    ids: tuple[str, str]
    pictures: tuple[Image.Image, Image.Image]


def image_statistics(examples: Sequence[Example]) -> ImageStatistics | None:
    """Statistics of the images of `examples`; None if none of them can be read."""
    sizes: Counter[tuple[int, int]] = Counter()
    examples = EachImage.of(examples)
    for start in range(0, len(examples), _AT_ONCE):
        images = [example.image for example in examples[start : start + _AT_ONCE]]
        found = inspect_images(images)
        sizes.update(file.size for image in images if (file := found[image]) is not None and file.size is not None)
    if not sizes:
        return None
    pixels = np.array(list(sizes.elements()), dtype=np.int64)  # [N, 2]
    sides = Counter(map(_side, pixels.max(axis=1)))
    kinds = [image_kind(example.image) for example in evenly(examples, _SAMPLE)]
    return ImageStatistics(
        images=sizes.total(),
        width=percentiles(pixels[:, 0]),
        height=percentiles(pixels[:, 1]),
        longest_side={name: sides[name] for name in map(_side, (*_SIDES, _SIDES[-1] + 1))},
        frequent={f"{width} x {height}": count for (width, height), count in sizes.most_common(_FREQUENT)},
        sample=len(kinds),
        formats=dict(Counter(format for format, _ in kinds).most_common()),
        modes=dict(Counter(mode for _, mode in kinds).most_common()),
    )


def contact_sheet(data: CaptionData, view: ModelView) -> tuple[SheetImage, ...]:
    """Up to 48 images spread over the data, the same number of each split where it has as many."""
    chosen: list[Example] = []
    splits = sorted(filter(len, map(data.split, SPLITS)), key=len)
    for number, examples in enumerate(splits):
        chosen += evenly(examples, (_SHEET - len(chosen)) // (len(splits) - number))
    chosen.sort(key=lambda example: SPLITS.index(example.split))
    found = inspect_images([example.image for example in chosen])
    sheet = []
    for example in chosen:
        file = found[example.image]
        if file is not None and file.size is not None:
            sheet.append(SheetImage(example, file.size, *image_kind(example.image), view.picture(example.image)))
    return tuple(sheet)


def leaking_pairs(data: CaptionData, view: ModelView) -> tuple[LeakingPair, ...]:
    """A few pairs of each leak, without those of which `data.on_leak=drop` has left out an image."""
    shown = [(leak, ids) for leak in data.report.leaks or () for ids in leak.examples[:_PAIRS]]
    wanted = {key for leak, (one, other) in shown for key in ((leak.split, one), (leak.other, other))}
    every = EachImage.of(data.examples if wanted else ())
    images = {key: example.image for example in every if (key := (example.split, example.id)) in wanted}
    pairs = []
    for leak, ids in shown:
        found = images.get((leak.split, ids[0])), images.get((leak.other, ids[1]))
        if found[0] is not None and found[1] is not None:
            pairs.append(LeakingPair(leak, ids, (view.picture(found[0]), view.picture(found[1]))))
    return tuple(pairs)


class ModelView:
    """Images after a backbone's image processor, without normalisation, or as they are read."""

    def __init__(self, backbone: Backbone | None):
        self._levels = pixel_levels(backbone) if backbone is not None else None

    @property
    def as_read(self) -> bool:
        """Whether pictures are the images as they are read."""
        return self._levels is None

    def picture(self, image: ImageSource) -> Image.Image:
        """What the model sees of `image`."""
        opened = open_image(image)
        return opened if self._levels is None else Image.fromarray(self._levels.levels([opened])[0].numpy())


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` items, spread evenly."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _side(pixels: int) -> str:
    limit = next((side for side in _SIDES if pixels <= side), None)
    return f"above {_SIDES[-1]}" if limit is None else f"up to {limit}"
