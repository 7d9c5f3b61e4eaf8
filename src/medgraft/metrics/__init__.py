"""Caption metrics, which work offline."""

from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, means, ratios
from medgraft.metrics.scoring import Scores, check_metrics, get_metric, measure, with_tokenizer
from medgraft.metrics.task import with_task_metrics

__all__ = [
    "CaptionMetric", "CaptionSet", "Measured", "Scores", "UnavailableError", "check_metrics", "get_metric", "means", "measure",
    "ratios", "with_task_metrics", "with_tokenizer",
]  # fmt: skip
