"""Whether a map points at the finding: scores of single images, which medgraft.metrics.localization adds up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medgraft.metrics.base import Array
from medgraft.metrics.facts import where_stated
from medgraft.metrics.saliency_scores import THRESHOLDS, Pointing
from medgraft.saliency.geometry import Rectangle, coverage
from medgraft.saliency.maps import CaptionMaps


def localize(maps: CaptionMaps, facts: Mapping[str, Any], view: Rectangle) -> dict[str, Pointing]:
    """Pointing scores of the words that name the finding, its side and its site, against the finding's box.

    `facts` has `box`: (left, top, right, bottom) in pixels. What the caption does not name is left out.
    """
    found = {}
    for name, span in where_stated(maps.caption).items():
        grid = maps.over(*span)
        if grid is not None:
            found[name] = pointing(grid, facts["box"], view)
    return found


def pointing(grid: Array, box: Sequence[float], view: Rectangle) -> Pointing:
    """Scores of one map against one box; see Pointing."""
    inside = coverage(box, view, (grid.shape[0], grid.shape[1]))
    total = float(grid.sum())
    cell = (view[2] - view[0]) / grid.shape[1] * (view[3] - view[1]) / grid.shape[0]
    area = (box[2] - box[0]) * (box[3] - box[1]) / cell  # in patches
    overlaps = []
    for threshold in THRESHOLDS:
        region = grid >= threshold * grid.max()
        overlap = float(inside[region].sum())
        overlaps.append(overlap / (area + float(region.sum()) - overlap))
    return Pointing(
        hit=float(inside.flat[int(np.argmax(grid))] > 0),
        energy=float((grid * inside).sum()) / total if total > 0 else 0.0,
        iou=tuple(overlaps),
        uniform_hit=float(np.mean(inside > 0)),
        uniform_energy=float(inside.mean()),
        uniform_iou=float(inside.sum()) / (area + inside.size - float(inside.sum())),
    )
