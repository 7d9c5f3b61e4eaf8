"""Normalises white space in captions, since U+2028, U+0085 and NBSP occur in real ones."""

from __future__ import annotations


def clean_caption(text: str) -> str:
    """`text` on one line, with single spaces and none at the ends."""
    return " ".join(text.split())
