"""Readers of tables with an image and a caption column, and of Hugging Face's imagefolder."""

from __future__ import annotations

import csv
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.text import clean_caption
from medgraft.errors import DataError, suggestion
from medgraft.types import SPLITS, Example, Split

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


class _Table(Dataset):
    """One row per image and caption; rows with the same image make one image with several captions.

    `split` names a column with train/validation/test; without it images are split 80/10/10 by a hash of their group, or of
    their name if there are no groups. `images` is the folder of relative image paths, by default the table's.
    """

    image: str = Field(default="image", description="column of image paths")
    caption: str = Field(default="caption", description="column of captions")
    id: str | None = Field(default=None, description="column of ids; the image's path if not given")
    group: str | None = Field(default=None, description="column of patients or articles, each of which stays in one split")
    split: str | None = Field(default=None, description="column of splits; 80/10/10 by group if not given")
    images: str = Field(default=".", description="folder of the images, relative to the table")

    @abstractmethod
    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        """Every row, by column name."""

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        if path is None or not path.is_file():
            raise DataError(f"{path or 'No path'}: a table is needed: write csv:FILE, tsv:FILE or jsonl:FILE.")
        merged: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for number, row in enumerate(self._rows(path), start=1):
            for column in filter(None, (self.image, self.caption, self.id, self.group, self.split)):
                if column not in row or (row[column] is None and column != self.caption):
                    raise DataError(
                        f"{path}, row {number} has no {column!r}.{suggestion(column, row)} "
                        f"Columns: {', '.join(map(str, row))}. Set the column names with --set data.image=... data.caption=..."
                    )
            value = row[self.caption] or ""
            captions = value if isinstance(value, list) else [value]
            merged.setdefault(str(row[self.image]), (row, []))[1].extend(clean_caption(str(c)) for c in captions)
        for name, (row, captions) in merged.items():
            group = str(row[self.group]) if self.group else None
            split = _named_split(str(row[self.split]), path) if self.split else hashed_split(group or name)
            image = Path(self.images).expanduser() / name
            yield Example(str(row[self.id]) if self.id else name, path.parent / image, tuple(captions), split, group)


class CsvTable(_Table):
    """A comma-separated table with a header."""

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)


class TsvTable(_Table):
    """A tab-separated table with a header; quotes are ordinary characters."""

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


class JsonlTable(_Table):
    """One JSON object a line; the caption may be a list of texts."""

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is not a JSON object.")
            yield row


class ImageFolder(Dataset):
    """Hugging Face's imagefolder: `metadata.csv` or `metadata.jsonl` with `file_name`, in the folder or in each split's."""

    caption: str = Field(default="text", description="column of captions")
    format: Literal["auto", "csv", "jsonl"] = Field(default="auto", description="which metadata file; auto: whichever is there")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        if path is None or not path.is_dir():
            raise DataError(f"{path or 'No path'}: imagefolder needs a folder with metadata.csv or metadata.jsonl.")
        folders = [(split, path / name) for name, split in _SPLIT_NAMES.items() if (path / name).is_dir()]
        found: list[tuple[Split | None, Path]]
        found = [(split, table) for split, folder in folders if (table := self._table(folder))]
        if not found and (table := self._table(path)):
            found = [(None, table)]
        if not found:
            raise DataError(f"{path} holds no metadata.csv or metadata.jsonl, nor do its train/, validation/ or test/ folders.")
        for split, table in found:
            kind = CsvTable if table.suffix == ".csv" else JsonlTable
            reader = kind(image="file_name", caption=self.caption)
            for example in reader.read(table):
                yield Example(example.id, example.image, example.captions, split or example.split, example.group)

    def _table(self, folder: Path) -> Path | None:
        kinds = ("csv", "jsonl") if self.format == "auto" else (self.format,)
        return next((p for kind in kinds if (p := folder / f"metadata.{kind}").is_file()), None)


def hashed_split(key: str) -> Split:
    """80/10/10 by a hash of `key`, so that adding rows does not move old ones."""
    tenth = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
    return "test" if tenth == 9 else "validation" if tenth == 8 else "train"


def _named_split(value: str, path: Path) -> Split:
    split = _SPLIT_NAMES.get(value.strip().lower())
    if split is None:
        raise DataError(f"{path}: {value!r} is not a split; use {', '.join(SPLITS)}.")
    return split
