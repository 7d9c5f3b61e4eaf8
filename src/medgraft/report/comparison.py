"""Compares two results: which scores got better, worse or stayed undecided."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medgraft.errors import ConfigError, suggestion
from medgraft.metrics import Measured, Scores
from medgraft.plugin import KnownScores, PluginManager
from medgraft.report.compared import Compared, pairs, read_compared
from medgraft.stats import ALPHA, Difference, Resampling, holm

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """The change in one score: that of the run `after_run` minus that of `before_run`, its corrected p-value and a verdict.

    The verdict is better, worse or undecided; higher or lower for a score without a direction. `tested` is False for a metric
    that scores all images together only, whose changes stay undecided.
    """

    before_run: str
    after_run: str
    score: str
    before: float
    after: float
    difference: Difference
    p: float
    verdict: str
    tested: bool = True

    @property
    def entry(self) -> str:
        """What is compared with what."""
        return self.before_run if self.before_run == self.after_run else f"{self.before_run} -> {self.after_run}"


def compare(
    before: Path, after: Path, *, scores: Sequence[str], plugins: PluginManager, references: Path | None = None
) -> tuple[Change, ...]:
    """Changes of what both results have in common, on the same images; ConfigError if there is nothing.

    Each is a folder of `medgraft bench`, a single run's, or a file of captions by image id, as `medgraft evaluate
    --predictions` writes; such a file takes the references of the other side, or those in `references`. What has the same name
    is compared; else a single run or file with all that the other side holds.
    """
    first, second = read_compared(before, references), read_compared(after, references)
    couples = pairs(first, second)
    if couples and couples[0][0].name == couples[0][1].name:
        for folder, alone in ((before, first.keys() - second.keys()), (after, second.keys() - first.keys())):
            if alone:
                _logger.warning("only in %s: %s", folder, ", ".join(sorted(alone)))
    if not couples:
        raise ConfigError(f"{before} and {after} have no run in common: {', '.join(first)} and {', '.join(second)}.")
    completed = [(a.beside(b), b.beside(a)) for a, b in couples]
    same = [(a, b) for a, b in completed if a.same_images(b)]
    if not same or (len(same) < len(completed) and len(first) > 1 and len(second) > 1):
        a, b = next((a, b) for a, b in completed if (a, b) not in same)
        counts = " and ".join(f"{len(each.captions[0].ids)}" for each in (a, b))
        raise ConfigError(f"{a.name}: {before} and {after} were scored on different images or references ({counts} images).")
    each = {id(run): run.measured(tuple(scores), plugins) for run in {id(run): run for pair in same for run in pair}.values()}
    measured = [(a, b, (each[id(a)], each[id(b)])) for a, b in same]
    found = [change for score in scores for change in _changes(measured, score, plugins)]
    corrected = holm({str(number): change.p for number, change in enumerate(found)})
    known = KnownScores(plugins)
    return tuple(_judged(change, corrected[str(n)], known[change.score].sign) for n, change in enumerate(found))


_Seeds = tuple[Scores, ...]


def _changes(
    couples: Sequence[tuple[Compared, Compared, tuple[_Seeds, _Seeds]]], score: str, plugins: PluginManager
) -> list[Change]:
    """The changes in `score`, uncorrected; ConfigError if no pair has it."""
    found, lacking, names, metric = [], [], set[str](), KnownScores(plugins).metric_of(score)
    for a, b, both in couples:
        sides = [[m for each in seeds for m in each.measured.values() if score in m.scores] for seeds in both]
        old, new = ([m for m in side if np.isfinite(m.scores[score])] for side in sides)
        if not old or not new:
            names |= {name for seeds in both for each in seeds for name in each.values}
            reasons = [each.unavailable for seeds in both for each in seeds]
            lacking.append((a, b, next((why for r in reasons if (why := r.get(score) or r.get(metric or ""))), None)))
            continue
        resampling = Resampling(a.captions[0].group_names())
        if resampling.groups == 1:
            raise ConfigError(f"{a.name}: all test images are of one group (patient or article), too few to compare.")
        found.append(_change(a, b, score, (old, new), resampling))
    if not found:
        reason = next((f" ({why})" for *_, why in lacking if why), "")
        raise ConfigError(f"No run has a score named {score}{reason}.{suggestion(score, sorted(names)) or _listed(plugins)}")
    for a, b, why in lacking:
        _logger.warning("not compared: %s of %s and %s%s", score, a.name, b.name, f" ({why})" if why else "")
    return found


def _listed(plugins: PluginManager) -> str:
    return f" Scores are those of the metrics {', '.join(plugins.names('metric'))}."


def _change(
    a: Compared, b: Compared, score: str, seeds: tuple[list[Measured], list[Measured]], resampling: Resampling
) -> Change:
    old, new = seeds
    values = [float(np.mean([measured.scores[score] for measured in side])) for side in seeds]
    difference = resampling.difference(new, old, score)
    tested = all(measured.resampled for measured in (*old, *new))
    return Change(a.name, b.name, score, values[0], values[1], difference, difference.p, "undecided", tested)


def _judged(change: Change, p: float, sign: int) -> Change:
    value = change.difference.value
    if p >= ALPHA or value == 0 or not change.tested:
        verdict = "undecided"
    elif sign:
        verdict = "better" if sign * value > 0 else "worse"
    else:
        verdict = "higher" if value > 0 else "lower"
    return replace(change, p=p, verdict=verdict)
