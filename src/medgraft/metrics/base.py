"""The base class of caption metrics, whose scores can be resampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medgraft.errors import ScoringError
from medgraft.metrics.measured import CaptionSet, Measured

if TYPE_CHECKING:
    import evaluate


class CaptionMetric(ABC):
    """A metric of captions. `signature` states the settings that determine its numbers, as `name|key:value|...`.

    It is called as those of Hugging Face's evaluate are, and `as_evaluate` makes one of them.
    """

    summary: str = ""
    citation: str = ""
    signature: str = ""

    @abstractmethod
    def measure(self, captions: CaptionSet) -> Measured:
        """Rows and scores; UnavailableError with the reason if something that the metric needs is missing."""

    def compute(self, *, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """The scores of predictions with one or more references each."""
        if len(predictions) != len(references) or any(isinstance(texts, str) for texts in references):
            raise ScoringError(
                f"{len(predictions)} predictions and {len(references)} references were given. Give a list of references for "
                "each prediction."
            )
        return self.checked(CaptionSet(tuple(predictions), tuple(map(tuple, references)))).scores

    def as_evaluate(self) -> evaluate.Metric:
        """This metric as an `evaluate.Metric`, for evaluate's `combine`, `add_batch` and evaluators."""
        from medgraft.metrics.evaluate_metric import EvaluateMetric

        return EvaluateMetric(self)

    def checked(self, captions: CaptionSet) -> Measured:
        """What `measure` gives; ScoringError if it is not a `Measured` with a row for each image."""
        found: object = self.measure(captions)
        if not isinstance(found, Measured):
            raise ScoringError(
                f"{type(self).__name__}.measure gave {type(found).__name__}, not Measured. Return means({{name: values}}) or "
                "ratios({name: (numerators, denominators)}), with a value for each image."
            )
        if len(found.rows) != len(captions.predictions):
            counts = f"{len(found.rows)} rows for {len(captions.predictions)} images"
            raise ScoringError(f"{type(self).__name__}.measure gave {counts}. Give a value for each image, in their order.")
        return found
