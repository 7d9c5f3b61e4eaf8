"""Attention maps as colours over the image, at its own resolution."""

from __future__ import annotations

import numpy as np
from PIL import Image

from medgraft.metrics.measured import Array
from medgraft.saliency.geometry import Rectangle, on_image

# RGBA from the lowest value to the highest. The low end is transparent and no colour is dark, so that a map hides or darkens
# nothing where the model does not attend. Rose, orange, yellow: monotonic in lightness, without telling red from green.
COLOURS = np.array(
    [[255, 110, 130, 0], [255, 110, 130, 0], [255, 125, 90, 128], [255, 165, 40, 204], [255, 225, 40, 255]], dtype=np.float64
)
COVER = 0.65  # opacity where the map is highest


def heat(grid: Array, view: Rectangle, size: tuple[int, int]) -> Array:
    """A word's map as a value from 0 to 1 for every pixel, [height, width]; see medgraft.saliency.geometry."""
    values = on_image(grid, view, size)
    highest = float(values.max())
    scaled: Array = values / highest if highest > 0 else values
    return scaled


def overlay(image: Image.Image, grid: Array, view: Rectangle) -> Image.Image:
    """`image` with the map in colours over it, in the image's size."""
    place = heat(grid, view, image.size) * (len(COLOURS) - 1)
    below = np.minimum(place.astype(int), len(COLOURS) - 2)
    part = (place - below)[..., None]
    colours = COLOURS[below] * (1 - part) + COLOURS[below + 1] * part  # [height, width, RGBA]
    cover = COVER * colours[..., 3:] / 255
    mixed = np.asarray(image.convert("RGB")) * (1 - cover) + colours[..., :3] * cover
    return Image.fromarray((mixed + 0.5).astype(np.uint8))
