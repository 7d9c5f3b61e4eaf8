"""Caption scores, each an evaluate.Metric that works offline."""

from medgraft.metrics.base import CaptionMetric, CaptionSet, Measured, UnavailableError, means, ratios
from medgraft.metrics.scoring import Scores, measure, score

__all__ = ["CaptionMetric", "CaptionSet", "Measured", "Scores", "UnavailableError", "means", "measure", "ratios", "score"]
