"""Text of files and captions: encodings, captions in cells and JSON values, white space."""

from __future__ import annotations

import ast
import codecs
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

from medgraft.data.notes import ReadingNotes, RowError
from medgraft.errors import DataError

_NO_TEXT = frozenset({"", "nan", "NaN", "NAN", "NULL", "null", "None", "<NA>", "#N/A"})  # as pandas, R and databases write it
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a letter, which no file or digest can hold
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def clean_caption(text: str) -> str:
    """`text` on one line, with single spaces and none at the ends."""
    return " ".join(text.split())


def bare_text(text: str) -> str:
    """`text` without white space and byte order marks at its ends; empty if it says that there is no value, such as `nan`."""
    bare = text.strip().strip("\ufeff").strip()
    return "" if bare in _NO_TEXT else bare


def read_captions(value: Any) -> tuple[str, ...]:
    """The captions in a cell or JSON value: a text, a list of texts, or none. RowError for any other value.

    A text may be such a list as Python or JSON writes it, as pandas does in CSV.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*(\[.*\]|\{.*\})\s*", value, re.DOTALL):
        value = _written_value(value.strip())
    if value is None:
        return ()
    if isinstance(value, list):
        for item in value:
            if not isinstance(item, str):
                raise RowError(f"the list of captions has {kind(item)} in it; only texts are captions")
        return tuple(caption for item in value for caption in read_captions(item))
    if not isinstance(value, str):
        raise RowError(f"the caption is {kind(value)}; it must be a text or a list of texts")
    caption = clean_caption(bare_text(value))
    if LONE_SURROGATE.search(caption):
        raise RowError(f"the caption {shown(value)} has half of a letter (a lone surrogate), which cannot be written")
    return (caption,) if caption else ()


def _written_value(text: str) -> Any:
    """The list or object that `text` writes; `text` itself if it writes none."""
    for parse in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings(action="ignore"):  # of backslashes that Python does not know
                return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def label(value: Any, what: str) -> str | None:
    """An id or a group as text, None if there is none; RowError if it is neither text nor a whole number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"the {what} is {kind(value)}; it must be a text or a whole number")
    return bare_text(str(value)) or None


def kind(value: Any) -> str:
    """What a JSON value is, for error messages."""
    match value:
        case None:
            return "null"
        case bool() | int():
            return f"the value {str(value).lower()}"
        case float():
            return "NaN" if math.isnan(value) else f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return shown(value)


def shown(value: Any) -> str:
    """`value` quoted on one line, shortened to 60 characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def read_text(path: Path, notes: ReadingNotes, encoding: str | None = None) -> str:
    """A text file in UTF-8 or, with a byte order mark, UTF-16; else in cp1252, which is noted. DataError if it is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    encoding = encoding or next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is None and b"\0" in content:
        raise DataError(f"{path} is no text, since it has zero bytes. Save a workbook as CSV, and any text as UTF-8.")
    try:
        return content.decode(encoding or "utf-8").lstrip("\ufeff")
    except LookupError:
        raise DataError(f"{path}: there is no encoding {encoding!r}. Use a name such as utf-8, cp1252 or gb18030.") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"{path}, line {line} is not {encoding or 'UTF-8'} text: {error.reason}"
        advice = "Save the file as UTF-8."
        if encoding is not None or _is_mostly_utf8(content):
            raise DataError(f"{problem}. {advice}") from None
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        raise DataError(f"{problem}, and it is not cp1252 either. {advice}") from None
    notes.assumed(f"{path.name} is not UTF-8; it was read as cp1252, the encoding of Windows.")
    return text


def _is_mostly_utf8(content: bytes) -> bool:
    """Whether more letters beyond ASCII are UTF-8 than are not; cp1252 text has such letters by rare chance alone."""
    wrong = content.decode(errors="replace").count("\ufffd")
    return sum(letter > "\x7f" for letter in content.decode(errors="ignore")) > wrong
