"""Saliency scores of single images, which metrics add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# what maps are scored for: what captions of images with one finding name; what answers and questions name of several boxes
POINTED = (("finding", "side", "site"), ("answer", "asked"))
THRESHOLDS = tuple(number / 10 for number in range(1, 10))  # relative to a map's highest value


@dataclass(frozen=True)
class Pointing:
    """How one map points at a box, or at the union of several.

    `hit`: the pointing game (Zhang et al. 2016, arXiv 1608.00507, section 4.1), 1 if the highest patch touches the box, a
    tolerance of half a patch. `energy`: the map's share inside the box (Wang et al. 2020, arXiv 1910.01279, section 4.3), with
    patches weighted by their part inside. `iou`: intersection over union of the box with the patches above each of THRESHOLDS.
    `uniform_*` are the scores of a uniform map, its `hit` by chance.
    """

    hit: float
    energy: float
    iou: tuple[float, ...]
    uniform_hit: float
    uniform_energy: float
    uniform_iou: float


@dataclass(frozen=True)
class Curves:
    """Areas under the curves of deletion and insertion (see medgraft.saliency.faithfulness), in a map's order and at random."""

    deletion: float
    insertion: float
    deletion_random: float
    insertion_random: float


@dataclass(frozen=True)
class SaliencyScores:
    """One image's pointing scores for each thing that its reference names, those of an untrained decoder, and its curves."""

    pointing: Mapping[str, Pointing]
    untrained: Mapping[str, Pointing]
    curves: Curves | None
