"""Splits a caption into words, each with its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+(?:[-'’./][^\W_]+)*")


@dataclass(frozen=True)
class Word:
    """A word at [start, end) of its caption, and the positions of its tokens."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


def words_of(caption: str, spans: Sequence[tuple[int, int]], count: int) -> tuple[Word, ...]:
    """The words of the first `count` tokens; `spans` holds every token's (start, end) in the caption."""
    found = []
    for match in _WORD.finditer(caption):
        start, end = match.span()
        tokens = tuple(i for i, span in enumerate(spans[:count]) if _overlap(_trimmed(caption, span), (start, end)))
        if tokens:
            found.append(Word(match[0], start, end, tokens))
    return tuple(found)


def _trimmed(caption: str, span: tuple[int, int]) -> tuple[int, int]:
    """A token's span without the spaces that some tokenizers include."""
    start, end = span
    while start < end and caption[start].isspace():
        start += 1
    return start, end


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])
