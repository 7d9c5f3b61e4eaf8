"""Whether a map is to be believed: what becomes of a caption's probability as the patches it points at go, or come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from medgraft.backbones import Backbone
from medgraft.metrics.base import Array
from medgraft.metrics.saliency_scores import Curves
from medgraft.saliency.geometry import Rectangle, on_image

STEPS = 8


def faithfulness(
    backbone: Backbone, image: Image.Image, caption: str, grid: Array, view: Rectangle, *, prompt: str, seed: int
) -> Curves:
    """Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421, section 4.1) of one image, for `grid` and at random.

    Deletion grays out the patches that the map holds highest, an eighth of all at a time; insertion brings them back into
    a blurred image. A point of a curve is the caption's probability per token, the geometric mean.
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
            areas.append(float(np.trapezoid(_probability(backbone, changed, caption, prompt))) / STEPS)
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


@torch.no_grad()
def _probability(backbone: Backbone, images: Sequence[Image.Image], caption: str, prompt: str) -> Array:
    """Of `caption` for each image, per token."""
    where = next(backbone.model.parameters()).device
    text = backbone.text_batch([caption] * len(images), prompt=prompt, max_tokens=backbone.max_positions).to(where)
    features = backbone.encode(backbone.pixel_values(images).to(where), prompt=prompt)
    logits = backbone.decode(features, text)[1]
    rows = (text.labels[0] != -100).nonzero()[:, 0]  # the same for all images
    chances = logits[:, rows - backbone.logits_offset].float().log_softmax(-1)  # [B, labels, V]
    mean = chances.gather(-1, text.labels[:, rows, None]).mean(dim=(1, 2))
    result: Array = mean.exp().cpu().double().numpy()
    return result
