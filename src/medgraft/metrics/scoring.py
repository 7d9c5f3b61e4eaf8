"""All wanted metrics of one set of captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from medgraft.errors import PluginError, ScoringError
from medgraft.plugin import PluginManager


def score(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Iterable[str],
    plugins: PluginManager,
) -> dict[str, float]:
    """Every number that `metrics` compute of captions by id; ScoringError if an id lacks its reference or prediction."""
    for what, ids in (
        ("reference", set(predictions) - set(references)),
        ("prediction", set(references) - set(predictions)),
    ):
        if ids:
            raise ScoringError(f"{len(ids)} ids have no {what}, such as {min(ids)!r}. Both files must have the same ids.")
    order = sorted(predictions)
    said = [predictions[key] for key in order]
    meant = [list(references[key]) for key in order]
    numbers: dict[str, float] = {}
    for name in metrics:
        result = plugins.get("metric", name)().compute(predictions=said, references=meant)
        taken = set(result) & set(numbers)
        if taken:
            raise PluginError(f"Metric {name!r} reports {', '.join(taken)}, which another metric reports too.")
        numbers |= {key: float(value) for key, value in result.items()}
    return numbers
