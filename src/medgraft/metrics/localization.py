"""Whether attention points at what is named, for data sets with boxes of findings or organs.

The model gets each reference by teacher forcing, so every strategy is scored on the same words of the same images: those that
name the finding, its side and its site, or an organ or finding that has boxes. A high score means that the map lies there, not
that the model's own caption is right.
"""

from __future__ import annotations

import numpy as np

from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import Array, CaptionSet, Measured, UnavailableError
from medgraft.metrics.saliency_scores import POINTED, THRESHOLDS, SaliencyScores

_CONTROLS = ("", "_uniform", "_untrained")


class Localization(CaptionMetric):
    """`pointing_X`, `energy_X` and `iou_X` for X = finding, side, site: means over the images whose reference names X.

    Where images have boxes by name, X = answer: the words of the reference that name some, against those boxes; and asked: all
    words of the reference, against the boxes of what the question names. Several boxes of one name count as their union.
    `iou_X` uses the threshold that is best for all images together. `..._uniform` is the score of a uniform map,
    `..._untrained` that of the maps of a randomly initialised decoder.
    """

    summary = __doc__ or ""
    citation = "Zhang et al. 2016, arXiv 1608.00507; Wang et al. 2020, arXiv 1910.01279; Choe et al. 2020, arXiv 2001.07437"
    signature = "localization|maps:attention, all layers and heads|told:reference|hit:touches box|iou:best of 9 thresholds"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        found = {name for saliency in captions.saliency or () if saliency for name in saliency.pointing}
        if captions.saliency is None or not found:
            raise UnavailableError("no attention maps of images whose boxes are known, as those of phantoms and SLAKE are")
        names = [name for together in POINTED if found.intersection(together) for name in together]
        blocks: list[Array] = []
        per_image: dict[str, Array] = {}
        for name in names:
            for control in _CONTROLS:
                rows = np.array([_row(saliency, name, control) for saliency in captions.saliency])
                blocks.append(rows)
                per_image |= _scores(rows, f"{name}{control}", best=int(np.argmax(rows[:, 3:].sum(axis=0))))
        width = blocks[0].shape[1]

        def combine(sums: Array) -> dict[str, Array]:
            scores: dict[str, Array] = {}
            for number, name in enumerate(f"{name}{control}" for name in names for control in _CONTROLS):
                scores |= _scores(sums[..., number * width : (number + 1) * width], name, best=None)
            return scores

        return Measured(np.concatenate(blocks, axis=1), combine, per_image)


def _row(saliency: SaliencyScores | None, name: str, control: str) -> list[float]:
    """Count, hit, energy and overlap at each threshold; zeros for an image without that score."""
    several = {} if saliency is None else saliency.untrained if control == "_untrained" else saliency.pointing
    pointing = several.get(name)
    if pointing is None:
        return [0.0] * (3 + len(THRESHOLDS))
    if control == "_uniform":
        return [1.0, pointing.uniform_hit, pointing.uniform_energy, *[pointing.uniform_iou] * len(THRESHOLDS)]
    return [1.0, pointing.hit, pointing.energy, *pointing.iou]


def _scores(sums: Array, name: str, best: int | None) -> dict[str, Array]:
    """Means from sums [..., 3 + thresholds]; the overlap at threshold `best`, or at the best one of each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[..., 1:] / sums[..., :1]
    overlap = means[..., 2:].max(axis=-1) if best is None else means[..., 2 + best]
    return {f"pointing_{name}": means[..., 0], f"energy_{name}": means[..., 1], f"iou_{name}": overlap}
