"""A caption metric in the form of Hugging Face's evaluate, whose import loads torch, transformers and datasets."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from medgraft.metrics.base import CaptionMetric


class EvaluateMetric(evaluate.Metric):
    """Gives the scores of a caption metric; `options` are those of evaluate.Metric."""

    def __init__(self, metric: CaptionMetric, **options: Any):
        self._metric = metric
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self._metric.summary, citation=self._metric.citation, inputs_description="",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )  # fmt: skip

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return self._metric.compute(predictions=predictions, references=references)
