"""The base class of caption metrics: an evaluate.Metric whose scores can be resampled."""

from __future__ import annotations

from abc import abstractmethod

import datasets
import evaluate

from medgraft.errors import ScoringError
from medgraft.metrics.measured import CaptionSet, Measured


class CaptionMetric(evaluate.Metric):
    """A metric of captions. `signature` states the settings that determine its numbers, as `name|key:value|...`."""

    summary: str = ""
    citation: str = ""
    signature: str = ""

    @abstractmethod
    def measure(self, captions: CaptionSet) -> Measured:
        """Rows and scores; UnavailableError with the reason if something that the metric needs is missing."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(description=self.summary, citation=self.citation, inputs_description="", features=features)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return self.checked(CaptionSet(tuple(predictions), tuple(map(tuple, references)))).scores

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
