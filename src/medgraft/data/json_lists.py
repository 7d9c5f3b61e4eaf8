"""Readers of JSON: arrays, lists by split, one object a line, conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medgraft.data.conversations import KEYS, read_conversation
from medgraft.data.delimited import Row
from medgraft.data.notes import ReadingNotes, RowError
from medgraft.data.splits import split_named
from medgraft.data.tables import Table
from medgraft.data.text import kind, read_text, shown
from medgraft.errors import DataError

_LISTS = ("data", "annotations")  # keys under which a file may have its list
_FORMS = 'write a list of objects, one object a line, or lists under "train", "val" and "test" or under "data"'


class JsonTable(Table):
    """A JSON array of objects, or one object a line; the caption may be a list of texts.

    The list may stand under the key `data` or `annotations`, or several under names of splits (R2Gen's annotation.json).

    Conversations: where an object has no caption but `conversations` (LLaVA, ShareGPT: `from` and `value`) or `messages`
    (`role` and `content`, which may be a list), the caption is the assistant's answer to a request for one. Conversations
    of questions and of several answers are bad rows, unless `turn` is `first`.
    """

    image_list: Literal["error", "first", "together"] = Field(
        default="error",
        description="lists of several images, such as two views of a study: an error, read the first, or read all, which the "
        "model sees together",
    )
    turn: Literal["first"] | None = Field(
        default=None, description="first: the first answer of any conversation is a caption, whatever was asked"
    )

    def load(self, path: Path) -> tuple[list[str], list[Row]]:
        """See Table.load."""
        rows: list[Row] = []
        for place, entry in self._entries(path):
            with self.notes.row(path, place):
                if not isinstance(entry, dict):
                    raise RowError(f"it is {kind(entry)} where an object is needed")
                rows.append(Row(place, self._cells(path, entry)))
        return list(dict.fromkeys(name for row in rows for name in row.cells)), rows

    def _entries(self, path: Path) -> Iterator[tuple[str, Any]]:
        text = read_text(path, self.notes)
        if not text.strip():
            raise DataError(f"{path} is empty. Write {_FORMS.removeprefix('write ')}.")
        try:
            content = parse_json(text)
        except (json.JSONDecodeError, RowError) as error:
            if not self._is_one_a_line(text):
                raise DataError(f"{path}{json_problem(error)}") from None
            yield from _lines(path, text, self.notes)
        else:
            yield from _listed(path, content, self.notes, self.image)

    def _is_one_a_line(self, text: str) -> bool:
        """Whether the first line is an object by itself."""
        try:
            return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
        except json.JSONDecodeError:
            return False

    def _cells(self, path: Path, entry: dict[str, Any]) -> dict[str, Any]:
        """The entry with a caption for a conversation, and with one image for a list unless its images belong together."""
        cells = dict(entry)
        talk = next((key for key in (self.caption, *KEYS) if key in KEYS and key in cells), None)
        if talk is not None and (talk == self.caption or self.caption not in cells):
            conversation = read_conversation(cells[talk], first=self.turn == "first")
            cells[self.caption] = conversation.caption
            if conversation.image and self.image not in cells and "images" not in cells:
                cells[self.image] = conversation.image
        for key in sorted({self.image, "image", "image_path", "images"} & cells.keys()):
            value = cells[key]
            if isinstance(value, list) and len(value) > 1 and self.image_list == "first":
                self.notes.assumed(f"{path.name}: of several images in a list the first was read.")
            elif isinstance(value, list) and len(value) > 1 and self.image_list == "error":
                raise RowError(
                    f"{key} is a list of {len(value)} images; data.image_list=first reads the first alone, together all as one"
                )
            if isinstance(value, list) and value and self.image_list != "together":
                cells[key] = value[0]
        return cells

    def listed_images(self, value: Any) -> Sequence[Any]:
        """See Table.listed_images."""
        return value if isinstance(value, list) and value and self.image_list == "together" else super().listed_images(value)


class JsonlTable(JsonTable):
    """The same as `json`: one object a line, or a JSON array."""

    def _is_one_a_line(self, text: str) -> bool:
        return not text.lstrip().startswith("[")


def parse_json(text: str) -> Any:
    """JSON as Python values. JSONDecodeError if it is none; RowError if an object has a key twice."""
    return json.loads(text, object_pairs_hook=_once)


def json_problem(error: json.JSONDecodeError | RowError) -> str:
    """What is wrong, to stand behind the file's name."""
    if isinstance(error, json.JSONDecodeError):
        return f", line {error.lineno} is not JSON: {error.msg} (column {error.colno})."
    return f": {error}."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError(f"an object has the key {shown(twice)} twice; keep one of them")
    return found


def _lines(path: Path, text: str, notes: ReadingNotes) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            entry = parse_json(line)
        except json.JSONDecodeError as error:
            notes.bad_row(path, place, _line_problem(line.strip(), error))
        except RowError as error:
            notes.bad_row(path, place, str(error))
        else:
            yield place, entry


def _line_problem(line: str, error: json.JSONDecodeError) -> str:
    if line.endswith(","):
        return "a comma stands behind the object; remove it, or write all objects between [ and ]"
    if line in ("{", "["):
        return "an object must stand on one line; write each on its own, or all of them between [ and ] with commas"
    return f"it is not JSON: {error.msg} (column {error.colno})"


def _listed(path: Path, content: Any, notes: ReadingNotes, image: str) -> Iterator[tuple[str, Any]]:
    """The entries of a whole JSON value, those of lists by split with their split."""
    if isinstance(content, dict) and "images" in content and "annotations" in content:
        raise DataError(f"{path} has images and annotations, as COCO has. Read it as coco:{path}.")
    if isinstance(content, dict) and _has_columns(content):
        raise DataError(
            f"{path} has columns, not rows. Write one object for each image, as DataFrame.to_json(orient='records')."
        )
    if isinstance(content, dict):
        lists = {key: value for key, value in content.items() if isinstance(value, list)}
        if any(map(split_named, lists)):
            yield from _by_split(path, lists, notes)
            return
        named = [key for key in _LISTS if key in lists]
        if len(named) > 1:
            raise DataError(f"{path} has lists under {' and '.join(named)}. Keep the one with the captions.")
        if named:
            content = lists[named[0]]
        elif image in content or any(key in content for key in KEYS):
            content = [content]
        elif content and all(isinstance(value, dict) for value in content.values()):
            content = list(content.values())  # such as pandas' orient "index"
    if not isinstance(content, list):
        keys = f" with the keys {', '.join(map(shown, list(content)[:8]))}" if isinstance(content, Mapping) and content else ""
        raise DataError(f"{path} is {kind(content)}{keys}, in which no list of images was found: {_FORMS}.")
    for number, entry in enumerate(content, start=1):
        yield f"entry {number}", entry


def _has_columns(content: dict[str, Any]) -> bool:
    """Whether `content` is a table by columns: lists of cells, numbered cells as pandas writes them, or its orient "split"."""
    if {"columns", "data"} <= content.keys():
        return True
    columns = list(content.values())
    if not columns or any(map(split_named, content)):
        return False
    if all(isinstance(column, dict) and column for column in columns):
        return all(key.isdigit() for column in columns for key in column)
    if not all(isinstance(column, list) and len(column) == len(columns[0]) > 1 for column in columns):
        return False
    return not any(isinstance(cell, dict) for column in columns for cell in column)


def _by_split(path: Path, lists: Mapping[str, list[Any]], notes: ReadingNotes) -> Iterator[tuple[str, Any]]:
    for key, entries in lists.items():
        split = split_named(key)
        if split is None:
            notes.bad_row(path, f"key {shown(key)}", "it is not a split, as the keys beside it are; rename it or remove it")
            continue
        for number, entry in enumerate(entries, start=1):
            place = f"{key} entry {number}"
            own = entry.get("split") if isinstance(entry, dict) else None
            if own is not None and split_named(own) != split:
                notes.bad_row(path, place, f"its split is {shown(own)}, but it stands under {key!r}; correct one of them")
            else:
                yield place, {**entry, "split": key} if isinstance(entry, dict) else entry
