"""Text from elsewhere (records, adapters, data, models) made safe where it is shown: terminal, Markdown, spreadsheet.

What is printed has no secrets either.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from medgraft.redaction import redacted_text

# control characters except tab and newline, line separators, marks that reverse the reading direction, lone surrogates
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*|\[\]]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    r"""`text` with control characters as `\u001b`, also where it is JSON; tabs and newlines stay."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """`text` in one printable line."""
    return printable(" ".join(text.split()))


def shown(text: str) -> str:
    """`text` as it may be printed: without control characters and secrets."""
    return printable(redacted_text(text))


def markdown_text(text: str) -> str:
    """`text` in one line of Markdown, in a table too: no markup, no HTML."""
    return html.escape(_MARKDOWN.sub(r"\\\g<0>", one_line(text)), quote=False)


def spreadsheet_cell(value: Any) -> Any:
    """`value` as a cell of a CSV file; an apostrophe before a text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


class ReaderGoneError(Exception):
    """Nobody reads what is written any more, as behind `| head`."""


class PrintableStream:
    """A text stream that writes to `stream` what may be `shown`; ReaderGoneError if it is a pipe that was closed."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """As TextIO.write; returns the number of characters of `text`."""
        with _reader():
            self._stream.write(shown(text))
        return len(text)

    def flush(self) -> None:
        """As TextIO.flush."""
        with _reader():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _reader() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGoneError from None
