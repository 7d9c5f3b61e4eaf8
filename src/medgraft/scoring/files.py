"""Reads captions from a file: JSON, COCO's annotations and results, JSON lines, tables, and a run's predictions.json.

Every form becomes rows: {id: caption} a row for each id, COCO's annotations a row for each annotation with its `file_name`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgraft.errors import ScoringError
from medgraft.scoring.run_captions import FILE, RunCaptions, captions_from

IDS = (
    "image_id", "id", "image", "file_name", "filename", "image_path", "image_name", "name", "path", "img", "img_id", "uid",
)  # fmt: skip
CAPTIONS = ("caption", "captions", "text", "report")


@dataclass(frozen=True)
class CaptionFile:
    """Rows of a file as (place, cells by column); `run` is what it holds if it is a run's predictions.json, else None."""

    name: str
    rows: tuple[tuple[str, Mapping[str, Any]], ...]
    run: RunCaptions | None = None
    notes: tuple[str, ...] = ()


def by_id(name: str, captions: Mapping[Any, Any]) -> CaptionFile:
    """{id: caption or captions} as a file called `name`."""
    return CaptionFile(name, tuple((f"id {key!r}", {"id": key, "caption": value}) for key, value in captions.items()))


def read_file(path: Path) -> CaptionFile:
    """The rows of a file, or of predictions.json in a run's folder; ScoringError if they cannot be read."""
    if path.is_dir():
        path = _in_folder(path)
    try:
        text, notes = _decoded(path.read_bytes(), path)
    except FileNotFoundError:
        raise ScoringError(f"There is no file {path}.") from None
    except OSError as error:
        raise ScoringError(f"{path} cannot be read: {error.strerror}.") from None
    if not text.strip():
        raise ScoringError(f"{path} is empty.")
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        found = CaptionFile(str(path), tuple(_lines(text, path)))
    elif suffix == ".json" or text.lstrip()[0] in "{[":
        found = _json(text, path)
    else:
        found = CaptionFile(str(path), tuple(_table(text, path)))
    if not found.rows:
        raise ScoringError(f"{path} holds no captions, neither as JSON nor as a table with a header.")
    return CaptionFile(found.name, found.rows, found.run, notes)


def _in_folder(folder: Path) -> Path:
    if (folder / FILE).is_file():
        return folder / FILE
    runs = sorted(path.parent for path in folder.glob(f"runs/*/{FILE}"))
    if runs:
        raise ScoringError(f"{folder} holds the captions of {len(runs)} runs. Name the folder of one, such as {runs[0]}.")
    raise ScoringError(f"{folder} is a folder without {FILE}. Name a file, or the folder of a run.")


def _decoded(raw: bytes, path: Path) -> tuple[str, tuple[str, ...]]:
    encoding = json.detect_encoding(raw)  # by byte order mark or by NUL bytes, else UTF-8
    notes: tuple[str, ...] = ()
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ScoringError(f"{path} is not {encoding} text: {error.reason}. Save it as UTF-8.") from None
        text, notes = raw.decode("cp1252", errors="replace"), (f"{path} is not UTF-8 and was read as cp1252.",)
    if "\0" in text or ("\ufffd" in text and notes):
        raise ScoringError(f"{path} is no text file. Save it as JSON, JSON lines or CSV.")
    return text, notes


def _parsed(text: str) -> Any:
    """JSON in which no object has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ScoringError(f"{key!r} occurs twice in one object; keep one")
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=unique)


def _json(text: str, path: Path) -> CaptionFile:
    try:
        content = _parsed(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under another name
            return CaptionFile(str(path), tuple(_lines(text, path)))
        raise ScoringError(f"{path} is not JSON: {error}.") from None
    except ScoringError as error:
        raise ScoringError(f"{path}: {error}.") from None
    match content:
        case {"predictions": dict(), "references": dict()}:
            run = captions_from(content, path)
            return CaptionFile(str(path), by_id(str(path), run.predictions).rows, run)
        case {"annotations": list(annotations)}:
            return CaptionFile(str(path), tuple(_coco(annotations, content.get("images"), path)))
        case dict() if any(key in content for key in IDS) and any(key in content for key in CAPTIONS):
            return CaptionFile(str(path), tuple(_entries([content], path)))
        case dict():
            return by_id(str(path), content)
        case list():
            return CaptionFile(str(path), tuple(_entries(content, path)))
    raise ScoringError(f"{path} holds {type(content).__name__}, not captions by id or a list of ids with captions.")


def _entries(entries: list[Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ScoringError(f"{path}, entry {number} is not an object with an id and a caption but {str(entry)[:40]!r}.")
        yield f"entry {number}", {_column(key): value for key, value in entry.items()}


def _coco(annotations: list[Any], images: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    known = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    names = {str(image.get("id")): image.get("file_name") for image in known}
    for place, row in _entries(annotations, path):
        name = names.get(str(row.get("image_id")))
        yield place, row if name is None else {"file_name": name, **row}


def _lines(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parsed(line)
        except (json.JSONDecodeError, ScoringError) as error:
            raise ScoringError(f"{path}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ScoringError(f"{path}, line {number} is not a JSON object.")
        yield f"line {number}", {_column(key): value for key, value in row.items()}


def _column(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _table(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a table with a header, separated by whichever of tab, comma, semicolon and bar is most frequent in it."""
    delimiter = max("\t,;|", key=text.lstrip().split("\n", 1)[0].count)
    lines = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter, strict=True)
    try:
        header = [_column(cell) for cell in next(lines)]
        twice = next((name for name in header if name and header.count(name) > 1), None)
        if twice is not None:
            raise ScoringError(f"{path} has two columns {twice!r}. Rename one.")
        for cells in lines:
            if not cells:
                continue
            place = f"line {lines.line_num}"
            if len(cells) != len(header):
                raise ScoringError(
                    f"{path}, {place} has {len(cells)} cells and the header {len(header)}. "
                    "Put captions with the delimiter in them in double quotes."
                )
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ScoringError(f"{path}, line {lines.line_num}: {error}. Check its quotes.") from None
