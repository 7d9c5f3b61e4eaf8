"""The images of validation during training."""

from __future__ import annotations

from collections.abc import Sequence

from medgraft.config import RunConfig
from medgraft.sequences import Chosen
from medgraft.types import CaptionData, Example


def validation_examples(config: RunConfig, data: CaptionData) -> Sequence[Example]:
    """The validation examples of `data`, or `train.max_validation_images` of them, spread evenly over the split."""
    every, limit = data.split("validation"), config.train.max_validation_images
    if limit is None or len(every) <= limit:
        return every
    return Chosen(every, [place * len(every) // limit for place in range(limit)])
