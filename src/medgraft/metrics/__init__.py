"""Caption metrics; each is an evaluate.Metric that works offline."""

from medgraft.metrics.base import CaptionMetric, CaptionSet, Measured, UnavailableError, means, ratios
from medgraft.metrics.scoring import Scores, check_metrics, get_metric, measure

__all__ = [
    "CaptionMetric", "CaptionSet", "Measured", "Scores", "UnavailableError", "check_metrics", "get_metric", "means", "measure",
    "ratios",
]  # fmt: skip
