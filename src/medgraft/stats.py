"""Confidence intervals of scores, and tests of differences between runs.

Images of one patient or article are not independent, so groups are resampled. Two sources of uncertainty are separate: the
choice of test images, estimated by resampling, and the seed, estimated from runs with several seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.special import ndtr, ndtri, stdtr

from medgraft.metrics import Measured, Scores
from medgraft.metrics.measured import Array

RESAMPLES = 1000
RANDOMISATIONS = 10_000
_CELLS = 20_000_000  # limit for a table of permutations: 160 MB
LEVEL = 0.95
ALPHA = 0.05

Standing = Literal["better", "undecided", "no better"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval of level 0.95."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Score of one strategy minus that of another on the same images.

    `interval` covers other test images of the same kind, for these runs. `p_images` is from a randomisation test over images,
    `p_seeds` from Welch's t-test that includes seeds, None with a single seed; `p` is the larger.
    """

    value: float
    interval: Interval
    p_images: float
    p_seeds: float | None

    @property
    def p(self) -> float:
        """The larger p-value of the two tests."""
        return max(self.p_images, self.p_seeds or 0.0)


class Resampling:
    """Resamples groups of images with replacement, with the same draws for every score of these images.

    `groups` [N] names each image's patient or article; an image without one is its own group.
    """

    def __init__(self, groups: Sequence[str | None], *, resamples: int = RESAMPLES, seed: int = 0):
        names = [f"image {i}" if group is None else f"group {group}" for i, group in enumerate(groups)]
        _, self._group = np.unique(names, return_inverse=True)  # [N]
        self.groups = int(self._group.max()) + 1
        self._resamples, self._seed = resamples, seed
        self._p_values: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[Measured, ...], dict[str, float]]] = {}
        self._cache: dict[tuple[int, str], tuple[Measured, Any]] = {}  # holds the object too, so that its id is not reused

    @cached_property
    def _counts(self) -> Array:
        """How often each group occurs in each draw, [R, G]."""
        rng = np.random.default_rng(self._seed)
        drawn = (rng.integers(0, self.groups, self.groups) for _ in range(self._resamples))
        return np.stack([np.bincount(draw, minlength=self.groups) for draw in drawn]).astype(np.float64)

    @cached_property
    def _swaps(self) -> Array:
        """1 where a randomisation exchanges two runs' results of a group, [S, G].

        There are more of them than draws, since a p-value to be corrected for hundreds of pairs must be small.
        """
        rng = np.random.default_rng([self._seed, 1])
        count = max(RESAMPLES, min(RANDOMISATIONS, _CELLS // self.groups))
        return rng.integers(0, 2, (count, self.groups)).astype(np.float64)

    def sums(self, measured: Measured) -> Array:
        """Sums of rows by group, [G, K]."""
        sums = np.zeros((self.groups, measured.rows.shape[1]))
        np.add.at(sums, self._group, measured.rows)
        return sums

    def _once(self, measured: Measured, what: str, make: Callable[[Array], Array]) -> dict[str, Array]:
        """Scores of `make`'s sums, cached because a report compares every run with every other."""
        key = (id(measured), what)
        if key not in self._cache:
            self._cache[key] = measured, measured.combine(make(self.sums(measured)))
        scores: dict[str, Array] = self._cache[key][1]
        return scores

    def draws(self, measured: Measured) -> dict[str, Array]:
        """Every score of every draw, [R]."""
        return self._once(measured, "draws", lambda sums: self._counts @ sums)

    def left_out(self, measured: Measured) -> dict[str, Array]:
        """Every score with each group left out in turn, [G]."""
        return self._once(measured, "left out", lambda sums: sums.sum(axis=0) - sums)

    def intervals(self, measured: Measured) -> dict[str, Interval]:
        """An interval for every score."""
        draws, left_out = self.draws(measured), self.left_out(measured)
        return {name: bca(value, draws[name], left_out[name]) for name, value in measured.scores.items()}

    def difference(self, ours: Sequence[Measured], theirs: Sequence[Measured], name: str) -> Difference:
        """Difference in the score `name` between two strategies, each given by its seeds and averaged over them."""
        value = _mean_score(ours, name) - _mean_score(theirs, name)
        p_images = self._randomisation(ours, theirs)[name]
        draws = self.mean_draws(ours, name) - self.mean_draws(theirs, name)
        left_out = self.mean_left_out(ours, name) - self.mean_left_out(theirs, name)
        return Difference(value, bca(value, draws, left_out), p_images, _welch(ours, theirs, name, draws, self.groups))

    def mean_draws(self, seeds: Sequence[Measured], name: str) -> Array:
        """The score of every draw, averaged over seeds, [R]."""
        mean: Array = np.mean([self.draws(measured)[name] for measured in seeds], axis=0)
        return mean

    def mean_left_out(self, seeds: Sequence[Measured], name: str) -> Array:
        """The score with each group left out in turn, averaged over seeds, [G]."""
        mean: Array = np.mean([self.left_out(measured)[name] for measured in seeds], axis=0)
        return mean

    def _randomisation(self, ours: Sequence[Measured], theirs: Sequence[Measured]) -> dict[str, float]:
        """Approximate randomisation (Noreen 1989): the share of random exchanges that differ as much, (c + 1) / (n + 1).

        An exchange swaps two strategies' captions of a group, between seeds at the same position; further seeds of the strategy
        with more of them stay. p-values of every score that all of them have, made once.
        """
        key = (tuple(map(id, ours)), tuple(map(id, theirs)))
        if key in self._p_values:
            return self._p_values[key][1]
        paired = min(len(ours), len(theirs))
        exchanged: tuple[list[dict[str, Array]], list[dict[str, Array]]] = ([], [])
        for one, other in zip(ours[:paired], theirs[:paired], strict=True):
            sums = self.sums(one), self.sums(other)
            moved = self._swaps @ (sums[1] - sums[0])
            exchanged[0].append(one.combine(sums[0].sum(axis=0) + moved))
            exchanged[1].append(other.combine(sums[1].sum(axis=0) - moved))
        p_values = {}
        for name in set.intersection(*(set(measured.scores) for measured in (*ours, *theirs))):
            means = [
                (np.sum([each[name] for each in scores], axis=0) + sum(m.scores[name] for m in rest))
                / (len(scores) + len(rest))
                for scores, rest in zip(exchanged, (ours[paired:], theirs[paired:]), strict=True)
            ]
            differences, found = np.abs(means[0] - means[1]), abs(_mean_score(ours, name) - _mean_score(theirs, name))
            p_values[name] = float((np.sum(differences >= found - 1e-12) + 1) / (len(differences) + 1))
        self._p_values[key] = (*ours, *theirs), p_values  # holds the objects too, so that their ids are not reused
        return p_values


def standing(differences: Sequence[tuple[float, float]], sign: int) -> Standing:
    """How a score stands against several others, by its differences from them with their p-values; `sign` -1: less is better.

    "no better" than at least one of them, "better" than all with p below ALPHA, else "undecided".
    """
    if any(sign * value <= 0 for value, _ in differences):
        return "no better"
    return "better" if all(p < ALPHA for _, p in differences) else "undecided"


def score_intervals(scores: Scores, groups: Sequence[str | None]) -> dict[str, Interval]:
    """95 % intervals of the scores that measure every image; none if all images are of one group."""
    resampling = Resampling(groups)
    if resampling.groups == 1:
        return {}
    return {
        name: interval
        for measured in scores.measured.values()
        if measured.resampled
        for name, interval in resampling.intervals(measured).items()
        if name in scores.values
    }


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
    """p-values corrected for multiple comparisons (Holm 1979), by name."""
    ordered = sorted(values, key=lambda name: values[name])
    corrected, highest = {}, 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * values[name]))
        corrected[name] = highest
    return corrected


def frontier(quality: Array, cost: Array) -> Array:
    """For each run [S], the share of draws [S, R] in which it is Pareto-optimal in quality and cost."""
    better = (quality[None] >= quality[:, None]) & (cost[None] <= cost[:, None])  # [i, j]: j is as good and as cheap as i
    strictly = (quality[None] > quality[:, None]) | (cost[None] < cost[:, None])
    beaten = (better & strictly).any(axis=1)
    share: Array = 1 - beaten.mean(axis=-1)
    return share


def _mean_score(seeds: Sequence[Measured], name: str) -> float:
    return float(np.mean([measured.scores[name] for measured in seeds]))


def _welch(ours: Sequence[Measured], theirs: Sequence[Measured], name: str, draws: Array, groups: int) -> float | None:
    """p-value of a t-test with variances over both strategies' seeds and over test images; None if one has a single seed.

    Welch-Satterthwaite degrees of freedom. The interaction of seed and image counts in both variances, which makes the test
    conservative.
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
    return float(2 * stdtr(freedom, -value / variance**0.5))
