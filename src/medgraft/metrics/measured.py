"""What metrics score, and what they measure: scores that are functions of sums over images.

Sums can be resampled: a bootstrap draws images, adds up their rows and computes scores with `combine`. So a corpus score such
as BLEU is computed exactly for every draw, not approximated by a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from medgraft.errors import ScoringError
from medgraft.metrics.saliency_scores import SaliencyScores

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class CaptionSet:
    """Predictions with their references, and what else they are scored against, all in the same order of images.

    `facts` are the known facts of each image, if the data set has them, `concepts` its UMLS identifiers, `saliency` the scores
    of the model's attention.
    """

    predictions: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    facts: tuple[Mapping[str, Any] | None, ...] | None = None
    concepts: tuple[tuple[str, ...] | None, ...] | None = None
    saliency: tuple[SaliencyScores | None, ...] | None = None


@dataclass(frozen=True)
class Measured:
    """Rows [N, K], one per image; `combine` turns their sums [..., K] into named scores [...], NaN where undefined.

    `per_image` holds scores of single images [N], NaN where an image has none. Rows without columns are those of a metric that
    only knows all images together: its scores have no intervals and no tests. `notes` are sentences that a reader of the
    scores has to know, such as that the metric was not made for these images.
    """

    rows: Array
    combine: Callable[[Array], dict[str, Array]]
    per_image: Mapping[str, Array]
    notes: tuple[str, ...] = ()

    @property
    def resampled(self) -> bool:
        """Whether images can be resampled."""
        return bool(self.rows.shape[1])

    @cached_property
    def scores(self) -> dict[str, float]:
        """The scores over all images."""
        return {name: float(value) for name, value in self.combine(self.rows.sum(axis=0)).items()}


class UnavailableError(ScoringError):
    """A metric that cannot be computed here; the message states what is missing."""


def ratios(columns: Mapping[str, tuple[Sequence[float] | Array, Sequence[float] | Array]]) -> Measured:
    """Scores that are ratios of two sums over images, given as (numerators [N], denominators [N])."""
    names = tuple(columns)
    above = np.stack([np.asarray(columns[name][0], dtype=np.float64) for name in names], axis=1)
    below = np.stack([np.asarray(columns[name][1], dtype=np.float64) for name in names], axis=1)

    def combine(sums: Array) -> dict[str, Array]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: sums[..., i] / sums[..., len(names) + i] for i, name in enumerate(names)}

    with np.errstate(invalid="ignore", divide="ignore"):
        each = above / below
    return Measured(np.concatenate([above, below], axis=1), combine, {name: each[:, i] for i, name in enumerate(names)})


def means(columns: Mapping[str, Sequence[float]]) -> Measured:
    """Scores that are means over images."""
    return ratios({name: (values, np.ones(len(values))) for name, values in columns.items()})


def whole(scores: Mapping[str, float], images: int) -> Measured:
    """Scores that are known for all images together only."""

    def combine(sums: Array) -> dict[str, Array]:
        return {name: np.full(sums.shape[:-1], value) for name, value in scores.items()}

    return Measured(np.zeros((images, 0)), combine, {})
