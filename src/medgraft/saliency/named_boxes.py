"""Which boxes of an image a text names, where data sets such as SLAKE have boxes of organs and findings by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Box = Sequence[float]  # left, top, right, bottom in pixels


class Named(NamedTuple):
    """The `boxes` of what a text names at [start, end)."""

    start: int
    end: int
    boxes: tuple[Box, ...]


def named_boxes(text: str, boxes: Mapping[str, Sequence[Box]]) -> list[Named]:
    """Every place where `text` names some of `boxes`, which are given by name, in the text's order.

    The longest name counts, so "liver cancer" does not name the liver. A name without its side stands for both sides: "lungs"
    for the boxes of "Left Lung" and "Right Lung".
    """
    known: dict[str, list[Box]] = {}
    for name, of_name in boxes.items():
        whole = name.strip().casefold()
        for known_as in {whole, re.sub(r"^(left|right) ", "", whole)} - {""}:
            known.setdefault(known_as, []).extend(of_name)
    if not known:
        return []
    longest_first = "|".join(re.escape(name) for name in sorted(known, key=len, reverse=True))
    found = re.finditer(rf"\b({longest_first})(e?s)?\b", text, re.IGNORECASE)
    return [Named(*place.span(), tuple(known[place[1].casefold()])) for place in found]
