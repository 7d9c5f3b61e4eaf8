"""Whether a map is to be believed: what becomes of a caption's probability as the patches it points at go, or come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from medgraft.metrics.base import Array
from medgraft.metrics.saliency_scores import Curves
from medgraft.saliency.geometry import Rectangle, on_image

STEPS = 8


def faithfulness(
    probability: Callable[[Sequence[Image.Image]], Array], image: Image.Image, grid: Array, view: Rectangle, *, seed: int
) -> Curves:
    """Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421, section 4.1) of one image, for `grid` and at random.

    `probability` is that of the caption per token, the geometric mean, for each of some images.
    Deletion grays out the patches that the map holds highest, an eighth of all at a time; insertion brings them back into
    a blurred image.
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
    """The share of patches that are higher, from 0 (the highest) to below 1."""
    order = np.argsort(-grid, axis=None, kind="stable")
    ranks = np.empty(grid.size)
    ranks[order] = np.arange(grid.size) / grid.size
    return ranks.reshape(grid.shape)


def _mixed(pixels: Any, other: Any, ranks: Array, share: float, keep: bool) -> Image.Image:
    """`other` with the highest `share` of the patches (`keep`), or the image without them."""
    chosen = (ranks < share)[..., None]
    return Image.fromarray(np.where(chosen == keep, pixels, other))
