"""Intervals, tests and frontiers, against references, by hand, and by simulation."""

import numpy as np
import pytest
import scipy.stats

from medgraft.metrics import means
from medgraft.stats import Resampling, bca, frontier, holm


def _mean(values):
    return means({"x": np.asarray(values, dtype=float)})


def test_bca_is_scipys():
    values = np.random.default_rng(0).gamma(1.0, 2.0, 60)
    ours = Resampling([None] * 60, resamples=20_000).intervals(_mean(values))["x"]
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03)


def test_images_of_one_group_are_drawn_together():
    values = np.random.default_rng(0).normal(size=40)
    single = Resampling([None] * 40).intervals(_mean(values))["x"]
    four_times = Resampling([str(i // 4) for i in range(160)]).intervals(_mean(np.repeat(values, 4)))["x"]
    assert four_times.high - four_times.low == pytest.approx(single.high - single.low, rel=0.1)


def test_nothing_varies_nothing_is_in_doubt():
    interval = Resampling([None] * 9).intervals(_mean(np.ones(9)))["x"]
    assert (interval.low, interval.high) == (1.0, 1.0)
    assert np.isnan(bca(float("nan"), np.array([np.nan]), np.array([np.nan])).low)


def test_randomisation_counts_every_exchange():
    a, b = _mean([1.0, 1.0, 1.0]), _mean([0.0, 0.0, 0.0])
    found = Resampling([None] * 3, resamples=20_000).difference([a], [b], "x")
    assert found.value == 1.0
    assert found.p_images == pytest.approx(2 / 8, abs=0.01)  # of eight exchanges, none and all of them differ as much
    assert found.p_seeds is None
    assert found.p == found.p_images


def test_a_plain_difference_is_found_among_hundreds_of_pairs():
    rng = np.random.default_rng(0)
    a = _mean(rng.normal(size=200))
    b = _mean(a.rows[:, 0] + 1 + rng.normal(scale=0.1, size=200))
    p = Resampling([None] * 200).difference([b], [a], "x").p
    assert holm({"it": p, **{str(i): 1.0 for i in range(189)}})["it"] < 0.05


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_frontier_by_hand():
    quality = np.array([[1.0, 1.0], [2.0, 0.5], [1.0, 0.2]])
    cost = np.array([[1.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    assert frontier(quality, cost).tolist() == [1.0, 0.5, 0.5]  # equals share it


def _coverage(tries, groups, seed=0):
    rng = np.random.default_rng(seed)
    inside = 0
    for number in range(tries):
        sizes = rng.integers(1, 4, groups)
        names = np.repeat(np.arange(groups), sizes)
        values = rng.gamma(1.0, 1.0, groups)[names] + rng.gamma(1.0, 1.0, len(names))
        interval = Resampling([str(name) for name in names], seed=number).intervals(_mean(values))["x"]
        inside += interval.low <= 2.0 <= interval.high
    return inside / tries


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    assert 0.92 <= _coverage(400, 150) <= 0.975


def test_seeds_of_one_model_are_not_called_different():
    """Halves of six seeds that vary as much as the images make them vary."""
    rng = np.random.default_rng(0)
    called = images_only = 0
    for number in range(300):
        hard = rng.normal(size=80)
        seeds = [_mean(hard + rng.normal(scale=0.3) + rng.normal(scale=0.5, size=80)) for _ in range(6)]
        found = Resampling([None] * 80, resamples=300, seed=number).difference(seeds[:3], seeds[3:], "x")
        called += found.p < 0.05
        images_only += found.p_images < 0.05
    assert called / 300 <= 0.06
    assert images_only / 300 > 0.2  # what the seeds are for
