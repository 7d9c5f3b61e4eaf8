"""Compares two results: which scores got better, worse or stayed undecided."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medgraft.benchmark import RunCaptions, read_captions
from medgraft.config import METRICS
from medgraft.errors import ConfigError, suggestion
from medgraft.metrics import LESS_IS_BETTER, Measured
from medgraft.plugin import PluginManager
from medgraft.report.results import ALPHA, measured_scores, read_results
from medgraft.stats import Difference, Resampling, holm

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """The change in one score of one entry: the second result's minus the first's, the corrected p-value and a verdict."""

    entry: str
    score: str
    before: float
    after: float
    difference: Difference
    p: float
    verdict: str  # better, worse or undecided


def compare(before: Path, after: Path, *, scores: Sequence[str], plugins: PluginManager) -> tuple[Change, ...]:
    """Changes of all entries that both results have, on the same images; ConfigError if they share none.

    A folder is one of `medgraft bench`, or a single run's with its `predictions.json`.
    """
    first, second = _sides(before, plugins), _sides(after, plugins)
    if len(first) == len(second) == 1:  # two single runs are compared whatever their settings
        second = {next(iter(first)): next(iter(second.values()))}
    common = [name for name in first if name in second]
    for folder, alone in ((before, [n for n in first if n not in second]), (after, [n for n in second if n not in first])):
        if common and alone:
            _logger.warning("only in %s: %s", folder, ", ".join(alone))
    if not common:
        raise ConfigError(f"{before} and {after} have no run in common: {', '.join(first)} and {', '.join(second)}.")
    found: dict[str, tuple[str, str, float, float, Difference]] = {}
    for name in common:
        a, b = first[name], second[name]
        if a[0].ids != b[0].ids or a[0].references != b[0].references:
            raise ConfigError(f"{name}: {before} and {after} were scored on different images or references.")
        resampling = Resampling(a[0].group_names())
        if resampling.groups == 1:
            raise ConfigError(f"{name}: all test images are of one group (patient or article), too few to compare.")
        for score in scores:
            ours, theirs = [m[score] for m in b[1] if score in m], [m[score] for m in a[1] if score in m]
            if ours and theirs:
                old, new = (float(np.mean([m.scores[score] for m in side])) for side in (theirs, ours))
                found[f"{name}\n{score}"] = (name, score, old, new, resampling.difference(ours, theirs, score))
    for score in scores:
        if not any(score == values[1] for values in found.values()):
            known = {key for name in common for side in (first, second) for m in side[name][1] for key in m}
            raise ConfigError(f"No run has a score named {score}.{suggestion(score, sorted(known))}")
    corrected = holm({key: difference.p for key, (*_, difference) in found.items()})
    return tuple(
        Change(*values, corrected[key], _verdict(values[1], values[-1], corrected[key])) for key, values in found.items()
    )


def _sides(folder: Path, plugins: PluginManager) -> dict[str, tuple[RunCaptions, list[dict[str, Measured]]]]:
    single = read_captions(folder)
    if single is not None:
        return {folder.name: (single, [measured_scores(single, METRICS, plugins)])}
    found = read_results(folder, plugins=plugins)
    if not found:
        raise ConfigError(f"{folder} holds no captions: neither predictions.json nor runs/*/predictions.json.")
    return {
        f"{entry.backbone} {entry.strategy} on {group.data}": (entry.captions[0], list(entry.measured))
        for group in found
        for entry in group.entries
    }


def _verdict(score: str, difference: Difference, p: float) -> str:
    if p >= ALPHA or difference.value == 0:
        return "undecided"
    return "better" if (difference.value > 0) != (score in LESS_IS_BETTER) else "worse"
