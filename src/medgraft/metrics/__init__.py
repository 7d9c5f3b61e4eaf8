"""Caption scores, each an evaluate.Metric that works offline."""

from medgraft.metrics.scoring import score

__all__ = ["score"]
