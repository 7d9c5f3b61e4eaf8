"""Restore normal spacing in text decoded from WordPiece tokens, which do not record spaces."""

from __future__ import annotations

import re

_HYPHEN = re.compile(r"(?<=\w) ([-/\u2013]) (?=\w)")
_HANGING = re.compile(r"(?<=\w) - (?=(?:and|or|to)\b)")  # mid- and lower zones
_OPENING = re.compile(r"(?<=[(\[]) ")
_CLOSING = re.compile(r" (?=[)\].,;:%])")
_DECIMAL = re.compile(r"(?<=\d)([.,]) (?=\d)")


def join_punctuation(text: str) -> str:
    """Close up compounds, brackets and decimals: `a 54 - year - old man ( arrow ) .` becomes `a 54-year-old man (arrow).`."""
    text = _CLOSING.sub("", _OPENING.sub("", _HYPHEN.sub(r"\1", _HANGING.sub("- ", text))))
    return _DECIMAL.sub(r"\1", text).strip()
