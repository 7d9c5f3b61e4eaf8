"""How sure a score is, and whether one run is better than another.

Images of one patient or article are not independent, so groups are what is drawn. Two kinds of doubt are kept apart: which
images happened to be in the test set, told by resampling them, and which seed happened to be used, told by training with
several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import t as student_t

from medgraft.metrics import Measured
from medgraft.metrics.base import Array

RESAMPLES = 1000
RANDOMISATIONS = 10_000
_CELLS = 20_000_000  # of a table of exchanges: 160 MB
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval of level 0.95."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Score of one strategy minus that of another, on the same images.

    `interval` is for other test images of the same kind with these very runs. `p_images` is that of a randomisation test
    for the same; `p_seeds`, None with a single seed, that of Welch's t-test in which the seeds count too; `p` the larger.
    """

    value: float
    interval: Interval
    p_images: float
    p_seeds: float | None

    @property
    def p(self) -> float:
        """How easily chance gives such a difference, by the more doubtful of the two tests."""
        return max(self.p_images, self.p_seeds or 0.0)


class Resampling:
    """Draws of groups with replacement, the same for all that is scored on these images.

    `groups` [N] names each image's patient or article; images without one are groups of their own.
    """

    def __init__(self, groups: Sequence[str | None], *, resamples: int = RESAMPLES, seed: int = 0):
        names = [f"image {i}" if group is None else f"group {group}" for i, group in enumerate(groups)]
        _, self._group = np.unique(names, return_inverse=True)  # [N]
        self.groups = int(self._group.max()) + 1
        self._resamples, self._seed = resamples, seed
        self._kept: dict[tuple[int, str], tuple[Measured, Any]] = {}  # with what it was made from, so that its id stays taken

    @cached_property
    def _counts(self) -> Array:
        """How often each group is in each draw, [R, G]."""
        rng = np.random.default_rng(self._seed)
        drawn = (rng.integers(0, self.groups, self.groups) for _ in range(self._resamples))
        return np.stack([np.bincount(draw, minlength=self.groups) for draw in drawn]).astype(np.float64)

    @cached_property
    def _swaps(self) -> Array:
        """For each randomisation and group, 1 if two runs change places there, [S, G].

        More of them than draws, since a p-value that is corrected for hundreds of pairs has to be small to begin with.
        """
        rng = np.random.default_rng([self._seed, 1])
        count = max(RESAMPLES, min(RANDOMISATIONS, _CELLS // self.groups))
        return rng.integers(0, 2, (count, self.groups)).astype(np.float64)

    def sums(self, measured: Measured) -> Array:
        """Rows added up by group, [G, K]."""
        sums = np.zeros((self.groups, measured.rows.shape[1]))
        np.add.at(sums, self._group, measured.rows)
        return sums

    def _once(self, measured: Measured, what: str, make: Callable[[Array], Array]) -> dict[str, Array]:
        """Scores of `make`'s sums, computed once, as a report compares every run with every other."""
        key = (id(measured), what)
        if key not in self._kept:
            self._kept[key] = measured, measured.combine(make(self.sums(measured)))
        scores: dict[str, Array] = self._kept[key][1]
        return scores

    def draws(self, measured: Measured) -> dict[str, Array]:
        """Every score of every draw, [R]."""
        return self._once(measured, "draws", lambda sums: self._counts @ sums)

    def left_out(self, measured: Measured) -> dict[str, Array]:
        """Every score without each group in turn, [G]."""
        return self._once(measured, "left out", lambda sums: sums.sum(axis=0) - sums)

    def intervals(self, measured: Measured) -> dict[str, Interval]:
        """An interval for every score."""
        draws, left_out = self.draws(measured), self.left_out(measured)
        return {name: bca(value, draws[name], left_out[name]) for name, value in measured.scores.items()}

    def difference(self, ours: Sequence[Measured], theirs: Sequence[Measured], name: str) -> Difference:
        """The score `name` of one strategy minus that of another, each given by its seeds, on average over them."""
        value = _mean_score(ours, name) - _mean_score(theirs, name)
        draws = self.mean_draws(ours, name) - self.mean_draws(theirs, name)
        left_out = self.mean_left_out(ours, name) - self.mean_left_out(theirs, name)
        p_images = self._randomisation(ours, theirs, name, abs(value))
        return Difference(value, bca(value, draws, left_out), p_images, _welch(ours, theirs, name, draws, self.groups))

    def mean_draws(self, seeds: Sequence[Measured], name: str) -> Array:
        """The score of every draw on average over seeds, [R]."""
        mean: Array = np.mean([self.draws(measured)[name] for measured in seeds], axis=0)
        return mean

    def mean_left_out(self, seeds: Sequence[Measured], name: str) -> Array:
        """The score without each group in turn, on average over seeds, [G]."""
        mean: Array = np.mean([self.left_out(measured)[name] for measured in seeds], axis=0)
        return mean

    def _randomisation(self, ours: Sequence[Measured], theirs: Sequence[Measured], name: str, found: float) -> float:
        """Approximate randomisation (Noreen 1989): the share of random exchanges that differ as much, (c + 1) / (n + 1).

        Exchanged are the two strategies' captions of a group, of each seed with the other's seed at its place; a strategy
        with more seeds keeps those that have no partner.
        """
        paired = min(len(ours), len(theirs))
        scores_a, scores_b = [], []
        for a, b in zip(ours[:paired], theirs[:paired], strict=True):
            sums_a, sums_b = self.sums(a), self.sums(b)
            moved = self._swaps @ (sums_b - sums_a)
            scores_a.append(a.combine(sums_a.sum(axis=0) + moved)[name])
            scores_b.append(b.combine(sums_b.sum(axis=0) - moved)[name])
        rest_a = [np.full(len(self._swaps), m.scores[name]) for m in ours[paired:]]
        rest_b = [np.full(len(self._swaps), m.scores[name]) for m in theirs[paired:]]
        differences = np.abs(np.mean([*scores_a, *rest_a], axis=0) - np.mean([*scores_b, *rest_b], axis=0))
        return float((np.sum(differences >= found - 1e-12) + 1) / (len(differences) + 1))


def bca(value: float, draws: Array, left_out: Array, level: float = LEVEL) -> Interval:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987, section 3) from draws and leave-one-out values."""
    draws = draws[np.isfinite(draws)]
    left_out = left_out[np.isfinite(left_out)]
    if not len(draws) or not np.isfinite(value):
        return Interval(float("nan"), float("nan"))
    if np.ptp(draws) == 0:
        return Interval(float(draws[0]), float(draws[0]))
    below = (np.sum(draws < value) + 0.5 * np.sum(draws == value)) / len(draws)
    bias = ndtri(np.clip(below, 1 / (2 * len(draws)), 1 - 1 / (2 * len(draws))))
    apart = left_out.mean() - left_out
    spread = np.sum(apart**2) ** 1.5
    acceleration = np.sum(apart**3) / (6 * spread) if spread else 0.0
    ends = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(draws, ndtr(bias + ends / (1 - acceleration * ends)))
    return Interval(float(low), float(high))


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for being many (Holm 1979), by name."""
    ordered = sorted(values, key=lambda name: values[name])
    corrected, highest = {}, 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * values[name]))
        corrected[name] = highest
    return corrected


def frontier(quality: Array, cost: Array) -> Array:
    """For each run [S], in which share of the draws [S, R] no other is as good and as cheap and better in one of them."""
    better = (quality[None] >= quality[:, None]) & (cost[None] <= cost[:, None])  # [S, S, R]: the second beats the first
    strictly = (quality[None] > quality[:, None]) | (cost[None] < cost[:, None])
    beaten = (better & strictly).any(axis=1)
    share: Array = 1 - beaten.mean(axis=-1)
    return share


def _mean_score(seeds: Sequence[Measured], name: str) -> float:
    return float(np.mean([measured.scores[name] for measured in seeds]))


def _welch(ours: Sequence[Measured], theirs: Sequence[Measured], name: str, draws: Array, groups: int) -> float | None:
    """P of a t-test with the variances of both strategies' seeds and of the test images; None if one has a single seed.

    Degrees of freedom by Welch and Satterthwaite. What depends on seed and image together is counted in both variances,
    so that the test errs to the side of doubt.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    parts = [(float(np.nanvar(draws)), groups - 1)]
    for seeds in (ours, theirs):
        scores = [measured.scores[name] for measured in seeds]
        parts.append((float(np.var(scores, ddof=1)) / len(scores), len(scores) - 1))
    variance = sum(part for part, _ in parts)
    value = abs(_mean_score(ours, name) - _mean_score(theirs, name))
    if variance == 0:
        return 0.0 if value else 1.0
    freedom = variance**2 / sum(part**2 / count for part, count in parts if part)
    return float(2 * student_t.sf(value / variance**0.5, freedom))
