"""Augmentation: training images rotated, cropped, changed in contrast and brightness, and noisy, at random.

The random numbers come from the image's content and a view's seed alone, so that a view is the same in every process, and
wherever the image lies.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops

from medgraft.augmentation_config import AugmentationConfig
from medgraft.config import RunConfig
from medgraft.types import Example, ImagePart, ImageSource, View

_VERSION = 1  # of what `augmented` computes; part of the key of stored features
_GRAIN = 256  # noise is drawn on a grid of this length, so that it is as strong in large images after resizing
_SIDE = re.compile(r"\b(left|right)(sided|wards?|most)?\b", re.IGNORECASE)


def augmented(image: Image.Image, view: View) -> Image.Image:
    """A view of an RGB image, of the same size; depends on the image's pixels and on `view` only."""
    settings = view.settings
    content = zlib.crc32(image.resize((32, 32), Image.Resampling.NEAREST).tobytes())
    random = np.random.default_rng([content, *view.seed])
    turn, across, down, contrast, brightness = random.uniform(-1, 1, 5)
    cut, noise, flip = random.random(3)  # all are drawn, so that each change is independent of the other settings
    degrees, kept = settings.rotation * turn, 1 - settings.crop * cut
    mirrored = settings.horizontal_flip and flip < 0.5
    if degrees or kept < 1 or mirrored:
        image = _moved(image, degrees, kept, (across, down), mirrored=mirrored)
    if settings.contrast or settings.brightness:
        levels = 127.5 + (np.arange(256) - 127.5) * (1 + settings.contrast * contrast) + 255 * settings.brightness * brightness
        image = image.point(np.rint(levels.clip(0, 255)).astype(int).tolist() * 3)
    return _noisy(image, 255 * settings.noise * noise, random) if settings.noise else image


def _moved(
    image: Image.Image, degrees: float, kept: float, place: tuple[float, float], *, mirrored: bool
) -> Image.Image:  # fmt: skip
    """Rotate, crop to the share `kept` at `place` (-1 to 1 for each axis), and enlarge to the old size, in one resampling.

    Corners from outside the image get the median colour of its border.
    """
    (width, height), cos, sin = image.size, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across = -kept if mirrored else kept
    x = ((1 - kept) * place[0] - across) * width / 2  # of the left upper corner, from the image's centre
    y = ((1 - kept) * place[1] - kept) * height / 2
    first = width / 2 + cos * x - sin * y, height / 2 + sin * x + cos * y
    affine = (cos * across, -sin * kept, first[0], sin * across, cos * kept, first[1])
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = tuple(int(level) for level in np.median(border, axis=0))
    return image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=colour)


def _noisy(image: Image.Image, deviation: float, random: np.random.Generator) -> Image.Image:
    """The same noise in all three channels, so that a grey image stays grey."""
    scale = min(1.0, _GRAIN / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    noise = np.rint(128 + deviation * random.standard_normal((height, width))).clip(0, 255).astype(np.uint8)
    grain = Image.fromarray(noise).resize(image.size, Image.Resampling.BILINEAR)
    return ImageChops.add(image, Image.merge("RGB", [grain] * 3), 1.0, -128)


@dataclass(frozen=True)
class Views:
    """Which views of its training images a run uses: `fixed` ones of each, or with 0 a new one in every epoch."""

    settings: AugmentationConfig
    seed: int
    fixed: int

    @classmethod
    def of(cls, config: RunConfig) -> Views | None:
        """The run's views, None without augmentation."""
        return cls(config.augmentation, config.seed, config.features.views) if config.augmentation.on else None

    def view(self, image: ImageSource, epoch: int, position: int) -> ImageSource:
        """The view of the image that stands at `position` among the training pairs, in an epoch."""
        if self.fixed:
            return self._fixed(image, (epoch + position) % self.fixed)
        return _with_view(image, View(self.settings, (self.seed, epoch, position)))

    def all_fixed(self, image: ImageSource) -> list[ImageSource]:
        """All views of an image that are fixed."""
        return [self._fixed(image, number) for number in range(self.fixed)]

    def _fixed(self, image: ImageSource, number: int) -> ImageSource:
        return _with_view(image, View(self.settings, (number,), fixed=True))


def recurring_images(config: RunConfig, examples: Iterable[Example]) -> Iterator[ImageSource]:
    """The images that a run reads again in later epochs: of an augmented training image only its fixed views."""
    views = Views.of(config)
    for example in examples:
        for image in example.images:
            yield from [image] if views is None or example.split != "train" else views.all_fixed(image)


def _with_view(image: ImageSource, view: View) -> ImagePart:
    return replace(image, view=view) if isinstance(image, ImagePart) else ImagePart(image, view=view)


def without_view(image: ImageSource) -> ImageSource:
    """The image itself, of which `image` may be a view."""
    if not isinstance(image, ImagePart) or image.view is None:
        return image
    plain = replace(image, view=None)
    return plain.path if plain == ImagePart(plain.path) else plain


def recurs(image: ImageSource) -> bool:
    """Whether later epochs read the same image, so that what is computed from it may be stored."""
    return not isinstance(image, ImagePart) or image.view is None or image.view.fixed


def view_digest(digest: str, image: ImageSource) -> str:
    """The digest of `image`, whose file has `digest`: another one for every view."""
    view = image.view if isinstance(image, ImagePart) else None
    if view is None:
        return digest
    decided_by = (digest, _VERSION, np.__version__, sorted(view.settings.changes().items()), view.seed)
    return hashlib.sha256(repr(decided_by).encode()).hexdigest()


def flip_warning(examples: Sequence[Example]) -> str:
    """What a horizontal flip does to the captions of the training images `examples`."""
    captions = [caption for example in examples for caption in example.captions]
    count = sum(bool(_SIDE.search(caption)) for caption in captions)
    return (
        f"augmentation.horizontal_flip swaps left and right in half of the training images: {count} of {len(captions)} "
        "training captions say left or right, and are wrong for a mirrored image."
    )
