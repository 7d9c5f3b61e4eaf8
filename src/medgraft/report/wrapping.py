"""Text for a terminal 80 columns wide."""

from __future__ import annotations

import textwrap

_WIDTH = 78


def item(text: str) -> str:
    """`text` as an item of a list."""
    return textwrap.fill(text, _WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)


def wrapped(text: str, indent: str = "") -> str:
    """`text` that may have paths in it, which stay whole; lines after the first are indented by two more spaces."""
    return textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False
    )
