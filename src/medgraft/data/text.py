"""Text of files and captions: encodings, captions in cells and JSON values, white space."""

from __future__ import annotations

import ast
import codecs
import io
import json
import math
import re
import tokenize
import warnings
from pathlib import Path
from typing import Any

from medgraft.data.notes import ReadingNotes, RowError
from medgraft.errors import DataError

# no value, as pandas, R and databases write it, and the errors of spreadsheets, such as #NAME? and #DIV/0!
_NO_TEXT = frozenset({"", "nan", "NaN", "NAN", "-nan", "NaT", "NULL", "null", "None", "<NA>", "N/A", "n/a", "#N/A", "#NV"})
_SHEET_ERROR = re.compile(r"#[A-Z][A-Z0-9/_]+[!?]")
_ROUNDED = re.compile(r"\d([.,]\d+)?E\+\d+")  # a long number, as spreadsheets show it
_INVISIBLE = "\xad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"  # soft hyphen, marks
_UNSEEN = re.compile(f"[\x00-\x08\x0e-\x1b\x7f{_INVISIBLE}]")
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a letter, which no file or digest can hold
_NO_TABLES = {  # by how such files begin
    b"\x1f\x8b": "it is compressed. Unpack it by gunzip.",
    b"PAR1": "it is parquet. Read it as hf:PATH.",
    b"PK\x03\x04": "it is a workbook or a zip archive. Save a workbook as CSV.",
    b"\xd0\xcf\x11\xe0": "it is a workbook. Save it as CSV.",
}
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def clean_caption(text: str) -> str:
    """`text` on one line, with single spaces and none at the ends, without control and invisible characters."""
    return " ".join(_UNSEEN.sub("", text).split())


def bare_text(text: str) -> str:
    """`text` without white space and invisible marks at its ends; empty if it says that there is no value, such as `nan`."""
    bare = text.strip().strip(_INVISIBLE).strip()
    return "" if bare in _NO_TEXT or _SHEET_ERROR.fullmatch(bare) else bare


def read_captions(value: Any) -> tuple[str, ...]:
    """The captions in a cell or JSON value: a text, a list of texts, or none. RowError for any other value.

    A text may be such a list as Python, JSON or NumPy write it, as pandas does in CSV. Chat templates' `<image>` is left out.
    """
    if isinstance(value, str):
        value = written_list(value)
    if value is None:
        return ()
    if isinstance(value, list):
        for item in value:
            if not isinstance(item, str):
                raise RowError(f"the list of captions has {kind(item)} in it; only texts are captions")
        return tuple(caption for item in value for caption in read_captions(item))
    if not isinstance(value, str):
        raise RowError(f"the caption is {kind(value)}; it must be a text or a list of texts")
    caption = clean_caption(bare_text(value.replace("<image>", " ")))
    if re.fullmatch(r"b'.*'|b\".*\"", caption):
        raise RowError(f"the caption {shown(caption)} is bytes as Python prints them; decode them before the table is written")
    if LONE_SURROGATE.search(caption):
        raise RowError(f"the caption {shown(value)} has half of a letter (a lone surrogate), which cannot be written")
    return (caption,) if caption else ()


def written_list(text: str) -> Any:
    """The list or object that `text` writes; `text` itself if it writes none."""
    if not re.fullmatch(r"\s*(\[.*\]|\{.*\})\s*", text, re.DOTALL):
        return text
    for parse in (json.loads, _python_value):
        try:
            with warnings.catch_warnings(action="ignore"):  # of backslashes that Python does not know
                return parse(text.strip())
        except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
            continue
    return text


def _python_value(text: str) -> Any:
    """What `text` writes in Python, or as NumPy prints it: two texts in a row are two, and not one as in Python."""
    parts: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string.strip():
            follows = token.type == tokenize.STRING and bool(parts) and parts[-1][-1] in "'\""
            parts += [",", token.string] if follows else [token.string]
    return ast.literal_eval(" ".join(parts))


def label(value: Any, what: str) -> str | None:
    """An id or a group as text, None if there is none; RowError if it is neither text nor a whole number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"the {what} is {kind(value)}; it must be a text or a whole number")
    text = bare_text(str(value))
    if _ROUNDED.fullmatch(text):
        raise RowError(f"the {what} {shown(text)} was rounded by a spreadsheet; export the column as text")
    return text or None


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
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        zero = f"it has zero bytes, the first in line {line}. Save a workbook as CSV, and any text as UTF-8."
        known = (what for start, what in _NO_TABLES.items() if content.startswith(start))
        raise DataError(f"{path} is no text, since {next(known, zero)}")
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
