"""Scores captions in files or dictionaries against their references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medgraft.metrics import Scores, measure
from medgraft.metrics.measured import Array
from medgraft.plugin import PluginManager
from medgraft.scoring.pairs import Source, pair
from medgraft.scoring.run_captions import RunCaptions
from medgraft.stats import Interval, score_intervals

SCORES = ("bleu", "rouge_l", "cider")


@dataclass(frozen=True)
class CaptionScores:
    """The captions scored, their scores with 95 % intervals, and notes on what was assumed and left out, and by the metrics."""

    captions: RunCaptions
    scores: Scores
    intervals: Mapping[str, Interval]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Every score by name."""
        return self.scores.values

    @property
    def unavailable(self) -> Mapping[str, str]:
        """Reasons of scores that could not be computed."""
        return self.scores.unavailable

    @property
    def per_image(self) -> Mapping[str, Array]:
        """Scores of single images [N] by name, in the order of `captions.ids`; NaN where an image has none."""
        return {name: values for measured in self.scores.measured.values() for name, values in measured.per_image.items()}


def score(
    predictions: Source,
    references: Source | None = None,
    *,
    metrics: Iterable[str] = SCORES,
    allow_missing: bool = False,
    plugins: PluginManager | None = None,
) -> CaptionScores:
    """Score captions against references, each a file or {id: caption or captions}.

    Files are JSON by id, COCO's annotations and results, JSON lines, CSV or TSV, or a run's folder, which has the references
    too. ScoringError if an id has several predictions, or lacks its prediction or reference; with `allow_missing` such ids are
    left out, as `notes` say. A metric that cannot be computed is in `unavailable` with the reason.
    """
    manager = plugins or PluginManager.from_environment()
    captions, notes = pair(predictions, references, allow_missing=allow_missing)
    found = measure(captions.caption_set(), metrics=metrics, plugins=manager)
    return CaptionScores(captions, found, score_intervals(found, captions.group_names()), (*notes, *found.notes))
