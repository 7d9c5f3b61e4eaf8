"""Attention maps as colours over the image, at its own resolution."""

from __future__ import annotations

import numpy as np
from PIL import Image

from medgraft.metrics.base import Array
from medgraft.saliency.geometry import Rectangle, on_image

# black, violet, red, orange, yellow: monotonic in lightness, readable in grey and without telling red from green
COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [255, 221, 20]], dtype=np.float64)
_COVER = 0.65  # opacity where the map is highest


def heat(grid: Array, view: Rectangle, size: tuple[int, int]) -> Array:
    """A word's map as a value from 0 to 1 for every pixel, [height, width]; see medgraft.saliency.geometry."""
    values = on_image(grid, view, size)
    highest = float(values.max())
    scaled: Array = values / highest if highest > 0 else values
    return scaled


def overlay(image: Image.Image, grid: Array, view: Rectangle) -> Image.Image:
    """`image` with the map in colours over it, in the image's size."""
    values = heat(grid, view, image.size)
    place = values * (len(COLOURS) - 1)
    below = np.minimum(place.astype(int), len(COLOURS) - 2)
    part = (place - below)[..., None]
    colours = COLOURS[below] * (1 - part) + COLOURS[below + 1] * part
    cover = (_COVER * values)[..., None]
    mixed = np.asarray(image.convert("RGB")) * (1 - cover) + colours * cover
    return Image.fromarray((mixed + 0.5).astype(np.uint8))
