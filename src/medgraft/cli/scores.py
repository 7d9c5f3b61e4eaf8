"""Scores as text: a line for each, beside those of the baselines, and why the others are missing."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from medgraft.plugin import KnownScores

if TYPE_CHECKING:
    from medgraft.benchmark.evaluation import Evaluation
    from medgraft.stats import Interval


def print_evaluation(found: Evaluation, known: KnownScores, *, details: bool = True) -> None:
    """What is to be read first, then scores with intervals and those of captions that ignore the image.

    Without `details` the scores of a short table alone.
    """
    from medgraft.report import evaluation_note

    note = evaluation_note(found, known[known.main(found.metrics)])
    if note:
        print(textwrap.fill(note, 80))
    floors = {name: each.metrics for name, each in found.baselines.items()}
    names = known.shown(found.metrics, details=details)
    print_scores({name: found.metrics[name] for name in names}, found.intervals, found.scores.unavailable, known, floors)


def print_scores(
    values: Mapping[str, float],
    intervals: Mapping[str, Interval],
    unavailable: Mapping[str, str],
    known: KnownScores,
    floors: Mapping[str, Mapping[str, float]] = {},
) -> None:
    """Print scores with their intervals and those of `floors` beside, then the reasons of those that could not be computed."""
    shown = known.shown(values)
    width = max(map(len, shown), default=0)
    if floors and shown:
        heads = "".join(f"{name:>15}" for name in floors)
        print(f"{'':<{width}} {'':6}  {'95 %' if intervals else '':<16}{heads}")
    for name in shown:
        interval = f"[{intervals[name].low:.4f}, {intervals[name].high:.4f}]" if name in intervals else ""
        beside = "".join(f"{each[name]:>15.4f}" if name in each else f"{'-':>15}" for each in floors.values())
        print(f"{name:<{width}} {values[name]:.4f}  {interval:<16}{beside}".rstrip())
    for reason in dict.fromkeys(unavailable.values()):
        names = known.shown(name for name, why in unavailable.items() if why == reason)
        print(f"not computed: {', '.join(names)} ({reason})")
    if any(name in intervals for name in shown):
        print("In brackets: 95 % intervals for other test images of the same kind.")
    if floors:
        print("Beside them: the commonest training caption for every image, and a random one for each.")
