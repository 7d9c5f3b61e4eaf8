"""Faithfulness of attention maps: deletion and insertion of the patches with the highest values."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, ratios
from medgraft.metrics.saliency_scores import Curves


class Faithfulness(CaptionMetric):
    """`deletion` (less is better) and `insertion`, means over images, each also for a random order (`..._random`)."""

    summary = __doc__ or ""
    citation = "Petsiuk et al. 2018, arXiv 1806.07421"
    signature = "faithfulness|maps:attention, mean of words|8 steps|deleted:mean colour|inserted into:blurred|caption:own"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        curves = [saliency.curves if saliency else None for saliency in captions.saliency or ()]
        known = np.array([float(curve is not None) for curve in curves])
        if not known.any():
            raise UnavailableError("no deletion or insertion curves of these captions")
        names = [field.name for field in fields(Curves)]
        return ratios({name: ([getattr(curve, name) if curve else 0.0 for curve in curves], known) for name in names})
