"""Whether a map points at what the text names: scores of single images, which medgraft.metrics.localization adds up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from medgraft.metrics.facts import where_stated
from medgraft.metrics.measured import Array
from medgraft.metrics.saliency_scores import THRESHOLDS, Pointing
from medgraft.saliency.geometry import Rectangle, coverage, disjoint
from medgraft.saliency.maps import CaptionMaps
from medgraft.saliency.named_boxes import Box, named_boxes


def can_be_localized(caption: str, facts: Mapping[str, Any]) -> bool:
    """Whether `facts` have the box of a finding, or boxes of what `caption`, or the question that it answers, names."""
    texts = (caption, facts.get("question", ""))
    return bool(facts.get("box")) or any(named_boxes(text, facts.get("boxes", {})) for text in texts)


def localize(maps: CaptionMaps, facts: Mapping[str, Any], view: Rectangle) -> dict[str, Pointing]:
    """Pointing scores of a caption's words against boxes, left, top, right and bottom in pixels. What is not named is left out.

    With the finding's `box` in `facts`: the words that name the finding, its side and its site. With `boxes`, lists of boxes by
    name: `answer`, the words that name some of them, each against the boxes of what it names (the mean over such words); and
    `asked`, all words against the boxes of what the `question` names.
    """
    if facts.get("box"):
        grids = {name: maps.over(*span) for name, span in where_stated(maps.caption).items()}
        return {name: pointing(grid, [facts["box"]], view) for name, grid in grids.items() if grid is not None}
    answer, question = (named_boxes(text, facts.get("boxes", {})) for text in (maps.caption, facts.get("question", "")))
    own = [(maps.over(start, end), boxes) for start, end, boxes in answer]
    scores = [pointing(grid, boxes, view) for grid, boxes in own if grid is not None]  # a cut answer lacks some words
    found = {"answer": _mean(scores)} if scores else {}
    if question and maps.words:
        found["asked"] = pointing(maps.mean(), [box for named in question for box in named.boxes], view)
    return found


def pointing(grid: Array, boxes: Sequence[Box], view: Rectangle) -> Pointing:
    """Scores of one map against the union of `boxes`; see Pointing."""
    parts = disjoint(boxes)
    inside = sum((coverage(part, view, (grid.shape[0], grid.shape[1])) for part in parts), start=np.zeros(grid.shape))
    total = float(grid.sum())
    cell = (view[2] - view[0]) / grid.shape[1] * (view[3] - view[1]) / grid.shape[0]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in parts) / cell  # in patches
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


def _mean(scores: Sequence[Pointing]) -> Pointing:
    single = [field.name for field in fields(Pointing) if field.name != "iou"]
    means = {name: float(np.mean([getattr(each, name) for each in scores])) for name in single}
    return Pointing(iou=tuple(np.mean([each.iou for each in scores], axis=0).tolist()), **means)
