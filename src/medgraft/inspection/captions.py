"""Statistics of captions in words."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medgraft.inspection.result import CaptionStatistics, ShownCaption
from medgraft.types import Example

PERCENTILES = (0, 50, 90, 99, 100)
_SHOWN = 6


def caption_statistics(examples: Sequence[Example]) -> CaptionStatistics:
    """Statistics of all captions of `examples`, of which there is one at least."""
    places, numbers, words = array("I"), array("I"), array("I")
    texts: Counter[str] = Counter()
    for place, example in enumerate(examples):
        for number, caption in enumerate(example.captions):
            if caption:
                places.append(place)
                numbers.append(number)
                words.append(len(caption.split()))
                texts[caption] += 1
    lengths = np.array(words, dtype=np.int64)
    order = np.argsort(lengths, kind="stable")

    def shown(rows: Iterable[int]) -> tuple[ShownCaption, ...]:
        """The first few different captions of `rows`."""
        found: dict[str, ShownCaption] = {}
        for row in rows:
            example = examples[places[row]]
            caption = example.captions[numbers[row]]
            found.setdefault(caption, ShownCaption(id=example.id, split=example.split, words=words[row], caption=caption))
            if len(found) == _SHOWN:
                break
        return tuple(found.values())

    return CaptionStatistics(
        captions=len(lengths),
        distinct=len(texts),
        repeated=sum(count for count in texts.values() if count > 1),
        words=percentiles(lengths),
        longest=shown(order[::-1]),
        shortest=shown(order),
        frequent={text: count for text, count in texts.most_common(_SHOWN) if count > 1},
    )


def percentiles(values: NDArray[np.int64]) -> dict[int, int]:
    """The PERCENTILES of `values`, each of which is one of the values."""
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return {percent: int(value) for percent, value in zip(PERCENTILES, found, strict=True)}
