"""What a table says first: which models are no better than captions that ignore the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medgraft.metrics import Measured
from medgraft.plugin import ScoreSpec
from medgraft.report.rows import Row
from medgraft.stats import Resampling, Standing, holm, standing

if TYPE_CHECKING:
    from medgraft.benchmark.evaluation import Evaluation

_SENTENCES: dict[Standing, str] = {
    "no better": "No better than captions that ignore the image",
    "undecided": "Not shown to be better than captions that ignore the image",
}


def standing_notes(rows: Sequence[Row]) -> list[str]:
    """A sentence on the rows of one table that are no better than its baselines, and one on those that may not be."""
    floor = {row.strategy: row.scores[row.main] for row in rows if row.is_baseline and row.main in row.scores}
    if not floor:
        return []
    spec = next(iter(floor.values())).spec
    best = max(floor, key=lambda name: spec.sign * floor[name].value)
    against = f"{best}: {spec.heading} {floor[best].value:.3f}"
    return [
        f"{sentence} ({against}): {', '.join(names)}."
        for kind, sentence in _SENTENCES.items()
        if (names := [row.strategy for row in rows if row.standing == kind])
    ]


def evaluation_note(found: Evaluation, spec: ScoreSpec) -> str | None:
    """The sentence on one evaluation and its baselines, by the score `spec`; None if it is better, or if nothing is known."""
    ours = _measured(found, spec.name)
    floors = {name: each for name, base in found.baselines.items() if (each := _measured(base, spec.name))}
    if not ours or not floors or not spec.sign:
        return None
    resampling = Resampling(found.captions.group_names())
    apart = {name: resampling.difference([ours], [each], spec.name) for name, each in floors.items()}
    corrected = holm({name: difference.p for name, difference in apart.items()})
    stands = standing([(difference.value, corrected[name]) for name, difference in apart.items()], spec.sign)
    best = max(floors, key=lambda name: spec.sign * floors[name].scores[spec.name])
    against = f"{spec.heading} {ours.scores[spec.name]:.3f}, {best} {floors[best].scores[spec.name]:.3f}"
    return f"{_SENTENCES[stands]}: {against}." if stands in _SENTENCES else None


def _measured(found: Evaluation, score: str) -> Measured | None:
    return next((each for each in found.scores.measured.values() if score in found.metrics and score in each.scores), None)
