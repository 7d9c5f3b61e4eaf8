"""Converts between grids of patches and pixels of the image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from medgraft.metrics.measured import Array

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the image


def on_image(grid: Array, view: Rectangle, size: tuple[int, int], *, smooth: bool = True) -> Array:
    """The values of `grid` [rows, columns] at every pixel of an image of `size` (width, height), as [height, width].

    `view` is the rectangle that the grid covers; outside it values are 0. `smooth` interpolates between patch centres.
    """
    left, top, right, bottom = view
    rows, columns = grid.shape
    x0, y0, x1, y1 = (round(max(left, 0)), round(max(top, 0)), round(min(right, size[0])), round(min(bottom, size[1])))
    x0, y0 = min(x0, size[0] - 1), min(y0, size[1] - 1)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)  # for an image one pixel wide
    part = (
        (x0 - left) / (right - left) * columns, (y0 - top) / (bottom - top) * rows,
        (x1 - left) / (right - left) * columns, (y1 - top) / (bottom - top) * rows,
    )  # fmt: skip
    within = (max(part[0], 0), max(part[1], 0), min(part[2], columns), min(part[3], rows))  # rounding may exceed the grid
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    shown = Image.fromarray(grid.astype(np.float32)).resize((x1 - x0, y1 - y0), how, box=within)
    whole = np.zeros((size[1], size[0]))
    whole[y0:y1, x0:x1] = np.asarray(shown)
    return whole


def coverage(box: Sequence[float], view: Rectangle, shape: tuple[int, int]) -> Array:
    """The share of each patch inside `box` (left, top, right, bottom in pixels), from 0 to 1, [rows, columns]."""
    left, top, right, bottom = view
    across = _shares((box[0] - left) / (right - left) * shape[1], (box[2] - left) / (right - left) * shape[1], shape[1])
    down = _shares((box[1] - top) / (bottom - top) * shape[0], (box[3] - top) / (bottom - top) * shape[0], shape[0])
    covered: Array = down[:, None] * across
    return covered


def disjoint(boxes: Sequence[Sequence[float]]) -> list[Rectangle]:
    """Rectangles that do not overlap and together cover what `boxes` (left, top, right, bottom) cover."""
    across, down = (sorted({edge for box in boxes for edge in box[axis::2]}) for axis in (0, 1))
    return [
        (left, top, right, bottom)
        for left, right in pairwise(across)
        for top, bottom in pairwise(down)
        if any(box[0] <= left and right <= box[2] and box[1] <= top and bottom <= box[3] for box in boxes)
    ]


def _shares(start: float, end: float, count: int) -> Array:
    edges = np.arange(count, dtype=np.float64)
    shares: Array = np.clip(np.minimum(edges + 1, end) - np.maximum(edges, start), 0, 1)
    return shares
