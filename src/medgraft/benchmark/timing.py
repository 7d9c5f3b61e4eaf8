"""Seconds of a training step, from timed repeats or from a run's own steps, and whether other work disturbed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from medgraft.benchmark.record import Record, read_record
from medgraft.config import TIMING_WARMUP_STEPS

TIMING = "timing"  # the folder of repeats in a suite's results
_SPREAD_OF_REPEATS = 0.1  # largest (max - min) / median of undisturbed repeats
_SPREAD_OF_STEPS = 0.35  # largest interquartile range / median of undisturbed steps; caption lengths cause most of it


@dataclass(frozen=True)
class StepTime:
    """Median seconds of a step with quartiles, over `repeats`, or over the steps of one run if that is 1.

    `disturbed` means that other work ran on the machine: another harness's, or repeats, or steps, vary more than the work does.
    """

    median: float
    low: float
    high: float
    repeats: int
    disturbed: bool


def timing_id(run_id: str, repeat: int) -> str:
    """The id of a repeat's record."""
    return f"{run_id}.{repeat}"


def quartiles(step_seconds: Sequence[float]) -> tuple[float, float, float] | None:
    """Quartiles without the warm-up steps, None if too few steps remain."""
    if len(step_seconds) < TIMING_WARMUP_STEPS + 4:  # the minimum that TimingConfig requires
        return None
    low, middle, high = quantiles(step_seconds[TIMING_WARMUP_STEPS:], n=4)
    return low, middle, high


def step_time(record: Record, out: Path) -> StepTime | None:
    """Step time from this run's repeats in `out` if there are several, else from its own steps; None if neither exists."""
    repeats = [read_record(path) for path in sorted((out / TIMING / "records").glob(f"{record.run_id}.*.json"))]
    medians = [repeat.step_quartiles[1] for repeat in repeats if repeat.step_quartiles]
    if len(medians) > 1:
        low, middle, high = quantiles(medians, n=4, method="inclusive")
        spread = max(medians) - min(medians) > _SPREAD_OF_REPEATS * median(medians)
        return StepTime(middle, low, high, len(medians), spread or any(repeat.disturbed for repeat in repeats))
    if record.step_quartiles is None:
        return None
    low, middle, high = record.step_quartiles
    return StepTime(middle, low, high, 1, high - low > _SPREAD_OF_STEPS * middle or bool(record.disturbed))
