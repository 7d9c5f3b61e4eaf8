"""Scores as text: a line for each, and why the others are missing."""

from __future__ import annotations

from collections.abc import Mapping

from medgraft.config import CONTROLS
from medgraft.stats import Interval


def print_scores(values: Mapping[str, float], intervals: Mapping[str, Interval], unavailable: Mapping[str, str]) -> None:
    """Print scores with their intervals, then the reasons of those that could not be computed."""
    shown = {name: value for name, value in values.items() if not name.endswith(CONTROLS)}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        interval = intervals.get(name)
        print(f"{name:<{width}} {value:.4f}" + (f"  [{interval.low:.4f}, {interval.high:.4f}]" if interval else ""))
    for reason in dict.fromkeys(unavailable.values()):
        names = [name for name, why in unavailable.items() if why == reason and not name.endswith(CONTROLS)]
        print(f"not computed: {', '.join(names)} ({reason})")
    if intervals:
        print("In brackets: 95 % intervals for other test images of the same kind.")
