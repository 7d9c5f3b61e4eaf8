"""Delimited text with a header, strictly read: tables of csv, tsv and imagefolder, of ROCO, ROCOv2 and ImageCLEF."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from medgraft.data.notes import ReadingNotes
from medgraft.data.text import bare_text, read_text, shown
from medgraft.errors import DataError

_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
_UNQUOTED = "a quote inside a quoted cell is written twice, and nothing but the delimiter follows a closing quote"


@dataclass(frozen=True, slots=True)
class Row:
    """A row's cells by column name, and its place in the file."""

    place: str
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class TableFormat:
    """How a table is written. A delimiter other than the `usual` ones is noted as assumed; None: found from the header.

    `tabs_quote`: whether quotes enclose cells of a table with tabs. `open_end`: surplus cells belong to the last column.
    """

    delimiter: str | None = None
    encoding: str | None = None
    usual: str = ","
    tabs_quote: bool = False
    open_end: bool = False


def read_delimited(
    path: Path, known: Collection[str], notes: ReadingNotes, form: TableFormat = TableFormat()
) -> tuple[list[str], list[Row]]:
    """The column names and rows of a table; bad rows are noted. `known` are names of columns, which tell the delimiter.

    Columns without a name are left out, and so are empty rows.
    """
    lines = list(io.StringIO(read_text(path, notes, form.encoding), newline=""))
    skipped = _lines_before_header(lines)
    if skipped == len(lines):
        raise DataError(f"{path} is empty. A table begins with a line of column names.")
    with _cells_up_to(sum(map(len, lines))):
        delimiter = _delimiter(path, lines[: skipped + 1], known, form)
        found = _parsed(lines, skipped, delimiter, form)
    if form.delimiter is None and delimiter not in form.usual:
        name = next((name for name, sign in _DELIMITERS.items() if sign == delimiter), repr(delimiter))
        notes.assumed(f"{path.name}: cells are separated by a {name}, as in its header.")
    for place, problem in found.problems:
        notes.bad_row(path, place, problem)
    if found.assumed:
        notes.assumed(f"{path.name}: {found.assumed}")
    enclosed = sum(any(len(c) > 1 and c[0] == c[-1] == '"' for c in map(str.strip, row.cells.values())) for row in found.rows)
    if enclosed:
        notes.assumed(
            f"{path.name}: {enclosed} rows have cells between quotes, which were kept as text. "
            "If they only enclose the cells, read the table as csv, with data.delimiter=tab if it has tabs."
        )
    return found.names, found.rows


def require_unique(path: Path, names: Collection[str], used: Collection[str]) -> None:
    """DataError if a column of `used` occurs twice in the header `names`."""
    twice = [name for name in dict.fromkeys(names) if name in used and list(names).count(name) > 1]
    if twice:
        raise DataError(f"{path} has several columns {', '.join(map(repr, twice))}. Rename or remove all but one.")


@dataclass
class _Table:
    names: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    assumed: str = ""


@contextmanager
def _cells_up_to(size: int) -> Iterator[None]:
    """Inside the block csv reads cells of up to `size` characters; its limit is one for the whole process."""
    limit = csv.field_size_limit(size)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _lines_before_header(lines: list[str]) -> int:
    """Empty lines, and the line `sep=;` that Excel writes."""
    count = 0
    while count < len(lines) and (not re.search(r"\w", lines[count]) or re.fullmatch(r'sep=[^"\r\n]\s*', lines[count])):
        count += 1
    return count


def _delimiter(path: Path, start: list[str], known: Collection[str], form: TableFormat) -> str:
    """The one asked for or declared, else the one by which the header has most known names, then most cells."""
    if form.delimiter is not None:
        delimiter = _DELIMITERS.get(form.delimiter, form.delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise DataError(f"{path}: data.delimiter={form.delimiter!r} is not {', '.join(_DELIMITERS)} or one character.")
        return delimiter
    *before, header = start
    declared = [line[4] for line in before if line.startswith("sep=")]
    if declared:
        return declared[0]
    folded = {name.casefold() for name in known}

    def score(delimiter: str) -> tuple[int, int]:
        names = _names(next(csv.reader([header], delimiter=delimiter), []))
        return sum(name.casefold() in folded for name in names), len(names)

    signs = dict.fromkeys([*form.usual, *_DELIMITERS.values()])
    best: str = max(signs, key=score)  # the first of equals
    return best


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().strip("\ufeff").strip() for cell in cells]


def _parsed(lines: list[str], skipped: int, delimiter: str, form: TableFormat) -> _Table:
    """The table; if it has bad rows as it stands, but none with one of two habits of quoting, then by that habit."""
    plain = _rows(lines, skipped, delimiter, form, spaced=False)
    if not plain.problems or (delimiter == "\t" and not form.tabs_quote):
        return plain
    if any(f'{delimiter} "' in line for line in lines):
        spaced = _rows(lines, skipped, delimiter, form, spaced=True)
        if not spaced.problems:
            spaced.assumed = "quotes enclose cells although they stand behind a space."
            return spaced
    if any('\\"' in line for line in lines):
        escaped = _rows([line.replace('\\"', '""') for line in lines], skipped, delimiter, form, spaced=False)
        if not escaped.problems:
            escaped.assumed = 'quotes inside cells are written \\".'
            return escaped
    return plain


def _rows(lines: list[str], skipped: int, delimiter: str, form: TableFormat, *, spaced: bool) -> _Table:
    table = _Table()
    quoted = delimiter != "\t" or form.tabs_quote
    number = skipped
    for line, end, cells in _records(lines, skipped, delimiter, quoted=quoted, spaced=spaced):
        number += 1
        place = f"row {number}" if number == line + 1 else f"row {number} (line {line + 1})"
        if isinstance(cells, str):
            table.problems.append((place, cells))
            if not table.names:
                return table
        elif not table.names:
            table.names = _names(cells)
            while table.names and not table.names[-1]:
                table.names.pop()
        elif any(map(bare_text, cells)):
            problem = _problem(table.names, cells, form, quoted=quoted) or _row_inside(lines[line + 1 : end], cells, delimiter)
            if problem:
                table.problems.append((place, problem))
            else:
                if form.open_end:
                    last = len(table.names) - 1
                    cells = [*cells[:last], delimiter.join(cells[last:])]
                named = zip(table.names, cells, strict=False)  # what is left over is empty
                table.rows.append(Row(place, {name: cell for name, cell in named if name}))
    return table


def _records(
    lines: list[str], start: int, delimiter: str, *, quoted: bool, spaced: bool
) -> Iterator[tuple[int, int, list[str] | str]]:
    """The first line, the line behind the last, and the cells of every record, or what is wrong with it.

    A record with a wrong quote is one line, so that the rows behind it are read.
    """
    while start < len(lines):
        behind = islice(lines, start, None)
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        reader = csv.reader(behind, delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=spaced)
        first = start
        try:
            for cells in reader:
                yield first, start + reader.line_num, cells
                first = start + reader.line_num
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                problem = "a quote opens here and is never closed; close it, or write it twice inside a quoted cell"
            else:
                problem = f"a quote opens here and is closed wrongly ({shown(lines[first].strip())}): {_UNQUOTED}"
            yield first, first + 1, problem
            start = first + 1


def _problem(names: list[str], cells: list[str], form: TableFormat, *, quoted: bool) -> str | None:
    """What is wrong with the number of cells."""
    if len(cells) < len(names):
        advice = "write the missing cells, empty if need be"
        if not quoted and any('"' in (cell.strip()[:1], cell.strip()[-1:]) for cell in cells):
            advice = "if quotes enclose cells of several lines, read the table as csv with data.delimiter=tab"
        return f"{len(cells)} cells where the header has {len(names)}; {advice}"
    surplus = [cell for cell in map(str.strip, cells[len(names) :]) if cell]
    if surplus and not form.open_end:
        return (
            f"{len(cells)} cells where the header has {len(names)}, the last {shown(surplus[-1])}; "
            "a cell with the delimiter in it must stand between quotes"
        )
    if cells[: len(names)] == names:
        return "the header is repeated; remove it"
    return None


def _row_inside(behind: list[str], cells: list[str], delimiter: str) -> str | None:
    """What is wrong with a record of several lines if one of those `behind` its first looks like a record itself.

    It does if it has as many cells and its first is like the record's: another number, or another name with the same suffix.
    """
    for line in behind:
        other = line.rstrip("\r\n").split(delimiter)
        if len(other) == len(cells) and _form(other[0]) == _form(cells[0]) is not None:
            return "a quote opens here and takes in the rows behind; close it, or write it twice inside a quoted cell"
    return None


def _form(cell: str) -> str | None:
    suffix = Path(cell.strip('"')).suffix
    if re.fullmatch(r"\.[A-Za-z]\w{2,3}", suffix):
        return suffix.lower()
    return re.sub(r"\d+", "9", cell.strip('"')) if re.search(r"[A-Za-z].*\d\d", cell) else None
