"""Test images by modality, finding and length of their references, and scores of these subgroups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medgraft.metrics import Measured
from medgraft.metrics.clinical import content
from medgraft.report.results import Entry, Group
from medgraft.scoring import RunCaptions
from medgraft.stats import Resampling

NONE_NAMED = "none named"
_FEWEST = 5  # independent groups of images in a subgroup with scores of its own
_FEW = 20  # with less the page warns of the intervals


@dataclass(frozen=True)
class Subgroup:
    """Images, by their number in `RunCaptions.ids`, whose references name `value`, or that have `value` as their length."""

    field: str
    value: str
    images: tuple[int, ...]


def subgroups(captions: RunCaptions) -> tuple[Subgroup, ...]:
    """Subgroups by `modality`, `finding` (as the words of the references name them) and `length`, each field's values in order.

    An image is in several subgroups if its references name several. A field that does not part the images is left out.
    """
    found: list[Subgroup] = []
    references = [captions.references[key] for key in captions.ids]
    named = [[content(text) for text in texts] for texts in references]
    by_field = {
        "modality": [{name for each in of for name in each.modalities} for of in named],
        "finding": [{name for each in of for name, positive in each.findings if positive} for of in named],
    }
    for field, values in by_field.items():
        counts = Counter(name for of_image in values for name in of_image)
        names = [*sorted(counts, key=lambda name: (-counts[name], name)), NONE_NAMED]
        parts = [
            Subgroup(field, name, tuple(i for i, having in enumerate(values) if name in (having or {NONE_NAMED})))
            for name in names
        ]
        parts = [part for part in parts if part.images]
        found += parts if len(parts) > 1 else []
    return (*found, *_by_length([len(texts[0].split()) if texts else 0 for texts in references]))


def _by_length(words: Sequence[int]) -> list[Subgroup]:
    """Thirds by the number of words of the first reference."""
    edges = sorted({int(edge) for edge in np.quantile(words, (1 / 3, 2 / 3), method="lower")})
    found = []
    for low, high in zip((-1, *edges), (*edges, max(words)), strict=True):
        images = tuple(i for i, count in enumerate(words) if low < count <= high)
        middle = f"{high} words" if low + 1 == high else f"{low + 1} to {high} words"
        upper = f"{low + 1} words or more" if high == max(words) else middle
        if images:
            found.append(Subgroup("length", f"up to {high} words" if low < 0 else upper, images))
    return found if len(found) > 1 else []


def subgroup_scores(group: Group, parts: Sequence[Subgroup], scores: Sequence[str]) -> dict[str, Any]:
    """For each of `scores` its table, by field ("" for all images): rows with a cell for each entry of `group`.

    A cell has the mean over seeds with its interval, None without one; corpus statistics, such as CIDEr's, are of all images.
    Subgroups of less than five patients or articles have no row; `left_out` counts them.
    """
    listed, left_out = [], 0
    for part in parts:
        within = _within(group, part.images)
        if within.resampling.groups < _FEWEST:
            left_out += 1
        else:
            listed.append((part, within))
    whole = (Subgroup("", "all images", tuple(range(len(group.entries[0].captions[0].ids)))), group)
    tables: dict[str, dict[str, list[dict[str, Any]]]] = {score: {} for score in scores if listed}
    for score, table in tables.items():
        for part, within in (whole, *listed):
            table.setdefault(part.field, []).append(_row(part, within, score))
    return {"tables": tables, "left_out": left_out}


def _within(group: Group, images: Sequence[int]) -> Group:
    """`group` with these images alone."""
    rows = np.array(images)
    names = [group.entries[0].captions[0].group_names()[i] for i in images]
    return replace(group, entries=tuple(_part(entry, rows) for entry in group.entries), resampling=Resampling(names))


def _part(entry: Entry, rows: Any) -> Entry:
    parts: dict[int, Measured] = {}  # one metric's scores have one Measured, resampled once
    for each in entry.measured:
        for whole in each.values():
            parts.setdefault(id(whole), Measured(whole.rows[rows], whole.combine, {}))
    return replace(entry, measured=tuple({name: parts[id(whole)] for name, whole in each.items()} for each in entry.measured))


def _row(part: Subgroup, group: Group, score: str) -> dict[str, Any]:
    cells: list[dict[str, float] | None] = []
    for entry in group.entries:
        values, interval = entry.values(score), group.interval(entry, score)
        known = interval is not None and bool(np.isfinite([*values, interval.low, interval.high]).all())
        cells.append(
            {"value": float(np.mean(values)), "low": interval.low, "high": interval.high} if interval and known else None
        )
    return {"value": part.value, "images": len(part.images), "few": group.resampling.groups < _FEW, "cells": cells}
