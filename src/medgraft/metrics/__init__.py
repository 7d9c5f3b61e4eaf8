"""Caption metrics; each is an evaluate.Metric that works offline."""

from medgraft.metrics.base import CaptionMetric, CaptionSet, Measured, UnavailableError, means, ratios
from medgraft.metrics.scoring import LESS_IS_BETTER, Scores, get_metric, measure

__all__ = [
    "LESS_IS_BETTER", "CaptionMetric", "CaptionSet", "Measured", "Scores", "UnavailableError", "get_metric", "means", "measure",
    "ratios",
]  # fmt: skip
