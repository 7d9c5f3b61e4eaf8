"""Reads captions from a file: JSON, COCO's annotations and results, JSON lines, tables, and a run's predictions.json.

Every form becomes rows: {id: caption} a row for each id, COCO's annotations a row for each annotation with its `file_name`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgraft.data.delimited import Row, TableFormat, read_delimited, require_unique
from medgraft.data.json_lists import json_problem, parse_json
from medgraft.data.notes import ReadingNotes, RowError
from medgraft.data.text import kind, read_text
from medgraft.errors import ScoringError
from medgraft.scoring.run_captions import PREDICTIONS_FILE, RunCaptions, captions_from

IDS = (
    "image_id", "id", "image", "file_name", "filename", "image_path", "image_name", "name", "path", "img", "img_id", "uid",
)  # fmt: skip
CAPTIONS = ("caption", "captions", "text", "report")
PREDICTIONS = (
    "prediction", "predictions", "predicted", "predicted_caption", "generated", "generated_caption", "hypothesis", *CAPTIONS,
)  # fmt: skip
REFERENCES = ("reference", "references", "reference_caption", "ground_truth", "gt", "target", *CAPTIONS)


@dataclass(frozen=True)
class CaptionFile:
    """The rows of a file; `run` is what it holds if it is a run's predictions.json, else None."""

    name: str
    rows: tuple[Row, ...]
    run: RunCaptions | None = None
    notes: tuple[str, ...] = ()


def by_id(name: str, captions: Mapping[Any, Any]) -> CaptionFile:
    """{id: caption or captions} as a file called `name`."""
    return CaptionFile(name, tuple(Row(f"id {key!r}", {"id": key, "caption": value}) for key, value in captions.items()))


def read_file(path: Path) -> CaptionFile:
    """The rows of a file, or of predictions.json in a run's folder; DataError or ScoringError if they cannot be read."""
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise ScoringError(f"There is no file {path}.")
    notes = ReadingNotes(skip_bad_rows=True)
    text = read_text(path, notes)
    run, suffix = None, path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        rows = tuple(_lines(text, path))
    elif suffix == ".json" or text.lstrip().startswith(("{", "[")):
        rows, run = _json(text, path)
    else:
        rows = _table(path, notes)
    if not rows:
        raise ScoringError(f"{path} holds no captions, neither as JSON nor as a table with a header.")
    return CaptionFile(str(path), rows, run, tuple(notes.assumptions))


def _in_folder(folder: Path) -> Path:
    if (folder / PREDICTIONS_FILE).is_file():
        return folder / PREDICTIONS_FILE
    runs = sorted(path.parent for path in folder.glob(f"runs/*/{PREDICTIONS_FILE}"))
    if runs:
        raise ScoringError(f"{folder} holds the captions of {len(runs)} runs. Name the folder of one, such as {runs[0]}.")
    raise ScoringError(f"{folder} is a folder without {PREDICTIONS_FILE}. Name a file, or the folder of a run.")


def _json(text: str, path: Path) -> tuple[tuple[Row, ...], RunCaptions | None]:
    try:
        content = parse_json(text)
    except (json.JSONDecodeError, RowError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":  # JSON lines under another name
            return tuple(_lines(text, path)), None
        raise ScoringError(f"{path}{json_problem(error)}") from None
    match content:
        case {"predictions": dict(), "references": dict()}:
            run = captions_from(content, path)
            return by_id(str(path), run.predictions).rows, run
        case {"annotations": list(annotations)}:
            return tuple(_coco(annotations, content.get("images"), path)), None
        case dict() if any(key in content for key in IDS) and any(key in content for key in CAPTIONS):
            return tuple(_entries([content], path)), None
        case dict():
            return by_id(str(path), content).rows, None
        case list():
            return tuple(_entries(content, path)), None
    raise ScoringError(f"{path} is {kind(content)}, not captions by id or a list of ids with captions.")


def _entries(entries: list[Any], path: Path, unit: str = "entry") -> Iterator[Row]:
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ScoringError(f"{path}, {unit} {number} is {kind(entry)}, not an object with an id and a caption.")
        yield Row(f"{unit} {number}", {_column(key): value for key, value in entry.items()})


def _coco(annotations: list[Any], images: Any, path: Path) -> Iterator[Row]:
    known = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    names = {str(image.get("id")): image.get("file_name") for image in known}
    for row in _entries(annotations, path):
        name = names.get(str(row.cells.get("image_id")))
        yield row if name is None else Row(row.place, {"file_name": name, **row.cells})


def _lines(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                (row,) = _entries([parse_json(line)], path)
            except (json.JSONDecodeError, RowError, ScoringError) as error:
                raise ScoringError(f"{path}, line {number} is not a JSON object with an id and a caption: {error}.") from None
            yield Row(f"line {number}", row.cells)


def _table(path: Path, notes: ReadingNotes) -> tuple[Row, ...]:
    form = TableFormat(usual=",;\t", tabs_quote=True)
    names, rows = read_delimited(path, {*IDS, *PREDICTIONS, *REFERENCES}, notes, form)
    if notes.bad_rows:
        raise ScoringError(f"{notes.bad_rows[0]} ({len(notes.bad_rows)} such rows).")
    require_unique(path, [_column(name) for name in names], {_column(name) for name in names})
    return tuple(Row(row.place, {_column(name): cell for name, cell in row.cells.items()}) for row in rows)


def _column(name: str) -> str:
    return name.strip().lower().replace(" ", "_")
