"""Faithfulness of a map: how a caption's probability changes as the patches with the highest values are removed or added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from medgraft.metrics.measured import Array
from medgraft.metrics.saliency_scores import Curves
from medgraft.saliency.geometry import Rectangle, on_image

STEPS = 8


def faithfulness(
    probability: Callable[[Sequence[Image.Image]], Array], image: Image.Image, grid: Array, view: Rectangle, *, seed: int
) -> Curves:
    """Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421, section 4.1) of one image, for `grid` and at random.

    `probability` returns, for each of several images, the caption's probability per token (geometric mean). Deletion replaces
    the patches with the highest values by the mean colour, an eighth of all at a time; insertion restores them in a blurred
    image.
    """
    random = np.random.default_rng(seed).permutation(grid.size).reshape(grid.shape)
    pixels = np.asarray(image.convert("RGB"))
    gray = np.broadcast_to(pixels.mean(axis=(0, 1)).astype(np.uint8), pixels.shape)
    blurred = np.asarray(image.convert("RGB").filter(ImageFilter.GaussianBlur(max(image.size) / 16)))
    areas = []
    for values in (grid, random.astype(np.float64)):
        ranks = on_image(_ranks(values), view, image.size, smooth=False)
        for other, keep in ((gray, False), (blurred, True)):
            changed = [_mixed(pixels, other, ranks, step / STEPS, keep) for step in range(STEPS + 1)]
            areas.append(float(np.trapezoid(probability(changed))) / STEPS)
    return Curves(*areas)


def _ranks(grid: Array) -> Array:
    """For each patch, the share of patches with higher values: from 0 (the highest) to below 1."""
    order = np.argsort(-grid, axis=None, kind="stable")
    ranks = np.empty(grid.size)
    ranks[order] = np.arange(grid.size) / grid.size
    return ranks.reshape(grid.shape)


def _mixed(pixels: Any, other: Any, ranks: Array, share: float, keep: bool) -> Image.Image:
    """`other` with the image's highest `share` of patches if `keep`, else the image with those from `other`."""
    chosen = (ranks < share)[..., None]
    return Image.fromarray(np.where(chosen == keep, pixels, other))
