"""The result of an inspection, as JSON has it."""

from __future__ import annotations

from medgraft.strict_model import StrictModel
from medgraft.text_statistics import GenerationStatistics, TextStatistics
from medgraft.types import Split


class Problem(StrictModel):
    """What a run refuses, leaves out or warns of: `what` says and counts it, `run` says what a run does and what to do.

    `items` are the cases, such as rows with their reasons. `count` is None where `what` has a share.
    """

    kind: str
    count: int | None
    refused: bool
    what: str
    run: str
    items: tuple[str, ...] = ()


class SplitCounts(StrictModel):
    """Counts of a split; `groups` is None if the data set names none."""

    images: int
    captions: int
    groups: int | None


class ShownCaption(StrictModel):
    """A caption with its number of words, and the image that has it."""

    id: str
    split: Split
    words: int
    caption: str


class CaptionStatistics(StrictModel):
    """All captions. `repeated` counts those whose text others have too; `words` has percentiles of the number of words.

    `longest`, `shortest` and `frequent`, which has counts, are a few different ones.
    """

    captions: int
    distinct: int
    repeated: int
    words: dict[int, int]
    longest: tuple[ShownCaption, ...]
    shortest: tuple[ShownCaption, ...]
    frequent: dict[str, int]


class ImageStatistics(StrictModel):
    """All images' widths and heights, as percentiles and as the most frequent sizes; `longest_side` counts by upper limits.

    `formats` and `modes`, by Pillow's names, are those of a `sample` of images spread over the data.
    """

    images: int
    width: dict[int, int]
    height: dict[int, int]
    longest_side: dict[str, int]
    frequent: dict[str, int]
    sample: int
    formats: dict[str, int]
    modes: dict[str, int]


class Inspection(StrictModel):
    """What a data set holds. `refusal` is the message with which a run that trains on it ends, None if it does not.

    The rest is what can be read without the bad rows; statistics are None where nothing can be. `text` is in tokens of the
    backbone, and `references` has the captions of the evaluated split; both are None for models behind an API.
    """

    data: str
    backbone: str
    refusal: str | None
    problems: tuple[Problem, ...]
    assumptions: tuple[str, ...]
    splits: dict[Split, SplitCounts]
    images: ImageStatistics | None
    captions: CaptionStatistics | None
    text: TextStatistics | None
    references: GenerationStatistics | None
