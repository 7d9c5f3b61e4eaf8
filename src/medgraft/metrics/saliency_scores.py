"""What was measured of where a model looked: numbers of single images, by which captions are judged beside their words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAMED = ("finding", "side", "site")  # what a caption names, and whose words have maps
THRESHOLDS = tuple(number / 10 for number in range(1, 10))  # shares of a map's highest value


@dataclass(frozen=True)
class Pointing:
    """How one map points at the box of a finding.

    `hit`: the pointing game (Zhang et al. 2016, arXiv 1608.00507, section 4.1), 1 if the highest patch touches the box, a
    tolerance of half a patch. `energy`: the map's share inside the box (Wang et al. 2020, arXiv 1910.01279, section 4.3),
    patches counted by the part that is. `iou`: intersection over union of the box with the patches from each of THRESHOLDS
    on. `uniform_*` are what a map without any preference gets, its `hit` by chance.
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
    """Of one image: pointing for each thing that its reference names, the same for an untrained decoder, and curves."""

    pointing: Mapping[str, Pointing]
    untrained: Mapping[str, Pointing]
    curves: Curves | None
