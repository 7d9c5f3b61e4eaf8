"""Caption metrics; each is an evaluate.Metric that works offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.lazy import lazily
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, means, ratios
from medgraft.metrics.scoring import Scores, check_metrics, get_metric, measure, with_tokenizer
from medgraft.metrics.task import with_task_metrics

if TYPE_CHECKING:
    from medgraft.metrics.base import CaptionMetric
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "CaptionMetric", "CaptionSet", "Measured", "Scores", "UnavailableError", "check_metrics", "get_metric", "means", "measure",
    "ratios", "with_task_metrics", "with_tokenizer",
]  # fmt: skip
