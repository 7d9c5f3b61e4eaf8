"""Prompts of examples: a template whose `{NAME}` stands for a column of the row or a field of the example."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from medgraft.data.notes import RowError
from medgraft.data.text import bare_text, clean_caption, kind, shown
from medgraft.errors import DataError, suggestion

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")  # doubled ones are braces themselves


def check_template(template: str, names: Iterable[str], where: str) -> tuple[str, ...]:
    """The names in `template`. DataError that lists `names`, those there are at `where`, for another one or a stray brace."""
    there = list(names)
    known = f"Names there are: {', '.join(there) or 'none'}."
    found = []
    for match in _BRACES.finditer(template):
        if len(match[0]) == 1:
            raise DataError(f"{where}: data.prompt {shown(template)} has a stray {match[0]!r}; write it twice. {known}")
        if match[1] is not None and match[1] not in there:
            hint = suggestion(match[1], there)
            raise DataError(f"{where}: data.prompt {shown(template)} names {match[1]!r}, which is not there.{hint} {known}")
        found += [] if match[1] is None else [match[1]]
    return tuple(found)


def fill_template(template: str, fields: Mapping[str, Any]) -> str:
    """A checked template with the values of `fields`, on one line each; RowError if one is missing or is no text."""

    def filled(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        text = _text(match[1], fields.get(match[1]))
        if not text:
            raise RowError(f"there is no {match[1]!r}, which data.prompt names; write it, or leave it out of the template")
        return text

    return _BRACES.sub(filled, template)


def _text(name: str, value: Any) -> str:
    """A value as text, empty if there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"the column {name!r} is {kind(value)}; data.prompt takes texts and numbers")
    return (
        clean_caption(bare_text(value)) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    )
