"""Readers of ROCO v1 (Pelka et al. 2018), its copy on Kaggle, ROCOv2 and the ImageCLEFmedical caption CSVs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.delimited import Row, TableFormat, read_delimited, require_unique
from medgraft.data.examples import ExampleList
from medgraft.data.notes import ReadingNotes, RowError
from medgraft.data.text import bare_text, read_captions, read_text, shown
from medgraft.errors import DataError
from medgraft.types import SPLITS, Example, Split

Subset = Literal["radiology", "non-radiology", "all"]
_SUFFIXES = (".jpg", ".jpeg", ".png")
ValueT = TypeVar("ValueT")


class Roco(Dataset):
    """ROCO v1: `{train,validation,test}/{radiology,non-radiology}/captions.txt` beside `images/`.

    Images are `images/<ROCO_ID>.jpg` or, in older downloads, `images/<PMC name>.jpg`. With `licences.txt` groups are articles;
    concepts come from `cuis.txt`. `groups` names another CSV, relative to the data, with columns `id` and `group_column`.
    """

    subset: Subset = Field(default="radiology", description="which of ROCO's folders: radiology, non-radiology or all")
    groups: str | None = Field(default=None, description="a CSV, relative to the data, with columns id and group_column")
    group_column: str = Field(default="group", description="its column with the patient or article")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        root = require_folder(path, "roco", "the folder that contains train/, validation/ and test/")
        subsets = ("radiology", "non-radiology") if self.subset == "all" else (self.subset,)
        folders = [(split, root / split / subset) for split in SPLITS for subset in subsets]
        present = [(split, folder) for split, folder in folders if (folder / "captions.txt").is_file()]
        if not present:
            raise DataError(
                f"{root} is not in ROCO v1 layout: no {{train,validation,test}}/{subsets[0]}/captions.txt is there."
            )
        groups = read_groups(root / self.groups, self.group_column, self.notes) if self.groups else {}
        examples = ExampleList(self.notes)
        for split, folder in present:
            self._add(examples, split, folder, groups)
        found = list(examples.examples(root))
        if self.groups and (without := sum(example.id not in groups for example in found)):
            self.notes.assumed(f"{self.groups} has no group for {without} of {len(found)} images.")
        yield from found

    def _add(self, examples: ExampleList, split: Split, folder: Path, groups: Mapping[str, str]) -> None:
        names = _mapping(folder / "licences.txt", "roco_id", "pmc_id", self.notes)
        concepts = self._concepts(folder / "cuis.txt")
        table = folder / "captions.txt"
        for place, line in _lines(table, self.notes):
            with self.notes.row(table, place):
                key, tab, caption = line.partition("\t")
                key = bare_text(key)
                if not tab or not key:
                    raise RowError(f"{shown(line)} is no line of the form ID, tab, caption")
                name = names.get(key)
                image = folder / "images" / f"{key}.jpg"
                if name and not image.exists() and (folder / "images" / name).exists():
                    image = folder / "images" / name
                group = groups.get(key) or (name.partition("_")[0] if name else None)
                example = Example(key, image, read_captions(caption), split, group, concepts=concepts.get(key))
                examples.add(example, table, place)

    def _concepts(self, path: Path) -> dict[str, tuple[str, ...]]:
        """Id -> CUIs from lines of tab-separated fields; the second field is empty."""
        found: dict[str, tuple[str, ...]] = {}
        for place, line in _lines(path, self.notes) if path.is_file() else ():
            key, *fields = line.split("\t")
            with self.notes.row(path, place):
                _put(found, bare_text(key), tuple(cui for field in fields if (cui := field.strip())))
        return found


class KaggleRoco(Dataset):
    """ROCO from Kaggle: `all_data/{train,validation,test}/radiology/` with `traindata.csv` (`id,name,caption`) and images."""

    subset: Subset = Field(default="radiology", description="which of ROCO's folders: radiology, non-radiology or all")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        root = require_folder(path, "roco-kaggle", "the folder that contains all_data/")
        root = root / "all_data" if (root / "all_data").is_dir() else root
        subsets = ("radiology", "non-radiology") if self.subset == "all" else (self.subset,)
        found = False
        examples = ExampleList(self.notes)
        stems: tuple[tuple[Split, str], ...] = (("train", "traindata"), ("validation", "valdata"), ("test", "testdata"))
        for split, stem in stems:
            for subset in subsets:
                tables = [f / f"{stem}.csv" for f in (root / split / subset, root / split)]
                table = next((t for t in tables if t.is_file()), None)
                if table is None:
                    continue
                found = True
                images = root / split / subset / "images"
                for row in read_table(table, ("id", "name", "caption"), self.notes):
                    with self.notes.row(table, row.place):
                        key, name = _id(row), bare_text(row.cells["name"])
                        image = images / name if name and (images / name).exists() else images / f"{key}.jpg"
                        group = name.partition("_")[0] or None
                        examples.add(Example(key, image, read_captions(row.cells["caption"]), split, group), table, row.place)
        yield from examples.examples(root)
        if not found:
            raise DataError(f"{root} is not Kaggle's ROCO: no {{train,validation,test}}/{subsets[0]}/traindata.csv is there.")


class Rocov2(Dataset):
    """ROCOv2: `{train,valid,test}_captions.csv` (`ID,Caption`) and `{train,valid,test}_images/`, possibly nested once more.

    Concepts come from `{train,valid,test}_concepts.csv` (`ID,CUIs`) if present: separated by `;`, `,` or spaces, or a list as
    JSON or Python writes it.
    """

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        root = require_folder(path, "rocov2", "the folder that contains train_captions.csv")
        found = False
        examples = ExampleList(self.notes)
        stems: tuple[tuple[Split, str], ...] = (("train", "train"), ("validation", "valid"), ("test", "test"))
        for split, stem in stems:
            table = root / f"{stem}_captions.csv"
            if table.is_file():
                found = True
                cuis = _mapping(root / f"{stem}_concepts.csv", "id", "cuis", self.notes, open_end=True)
                concepts = {key: tuple(filter(None, re.split(r"[;,\s\[\]'\"]+", text))) for key, text in cuis.items()}
                add_captions(examples, table, image_folder(root, stem), split, concepts)
        yield from examples.examples(root)
        if not found:
            raise DataError(f"{root} is not ROCOv2: no {{train,valid,test}}_captions.csv is there.")


class ImageClef(Dataset):
    """ImageCLEFmedical caption files of 2022 to 2024: tab or comma, `ID` in any case. One file is one split.

    Options name the files and image folders, relative to the path; a split without its file is left out.
    """

    train: str = Field(default="train_captions.csv", description="caption file of the training split")
    validation: str = Field(default="valid_captions.csv", description="caption file of the validation split")
    test: str = Field(default="test_captions.csv", description="caption file of the test split")
    train_images: str = Field(default="train", description="image folder of the training split")
    validation_images: str = Field(default="valid", description="image folder of the validation split")
    test_images: str = Field(default="test", description="image folder of the test split")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        root = require_folder(path, "imageclef", "the folder that contains the caption files")
        found = False
        examples = ExampleList(self.notes)
        places: tuple[tuple[Split, str, str], ...] = (
            ("train", self.train, self.train_images),
            ("validation", self.validation, self.validation_images),
            ("test", self.test, self.test_images),
        )
        for split, name, images in places:
            if (root / name).is_file():
                found = True
                add_captions(examples, root / name, image_folder(root, images), split)
        yield from examples.examples(root)
        if not found:
            raise DataError(
                f"{root} holds none of {self.train}, {self.validation}, {self.test}; name them with --set data.train=..."
            )


def add_captions(
    examples: ExampleList, table: Path, images: Path, split: Split, concepts: Mapping[str, tuple[str, ...]] | None = None
) -> None:
    """Add a two-column caption table whose ids are file names, with or without extension."""
    for row in read_table(table, ("id", "caption"), examples.notes):
        with examples.notes.row(table, row.place):
            key = _id(row)
            known = (concepts or {}).get(key)
            example = Example(key, find_image(images, key), read_captions(row.cells["caption"]), split, concepts=known)
            examples.add(example, table, row.place)


def read_table(
    path: Path, columns: tuple[str, ...], notes: ReadingNotes, form: TableFormat = TableFormat(usual=",\t")
) -> list[Row]:
    """Rows of a CSV or TSV with lower-cased column names; DataError if a column is missing."""
    names, rows = read_delimited(path, columns, notes, form)
    names = [name.lower() for name in names]
    absent = [column for column in columns if column not in names]
    if absent:
        raise DataError(f"{path} has no column {', '.join(absent)}; its columns are {', '.join(names) or 'none'}.")
    require_unique(path, names, columns)
    return [Row(row.place, {name.lower(): cell for name, cell in row.cells.items()}) for row in rows]


def image_folder(root: Path, stem: str) -> Path:
    """`root/stem_images` or `root/stem`, one level deeper if that only contains a folder of the same name."""
    folder = next((f for f in (root / f"{stem}_images", root / stem) if f.is_dir()), root)
    inner = folder / folder.name
    return inner if inner.is_dir() else folder


def find_image(folder: Path, key: str) -> Path:
    """The file for an id with or without extension; the plain `.jpg` path if there is no file."""
    if Path(key).suffix.lower() in _SUFFIXES:
        return folder / key
    return next((p for s in _SUFFIXES if (p := folder / f"{key}{s}").exists()), folder / f"{key}.jpg")


def require_folder(path: Path | None, name: str, what: str) -> Path:
    """`path` if it is a folder, else a DataError that describes the expected one."""
    if path is None:
        raise DataError(f"Data {name!r} needs a path: write {name}:PATH, with {what}.")
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; {name} needs {what}.")
    return path


def read_groups(path: Path, column: str, notes: ReadingNotes) -> dict[str, str]:
    """Id -> group from a CSV with an `id` column."""
    if not path.is_file():
        raise DataError(f"There is no groups file {path}.")
    return {key: group for key, group in _mapping(path, "id", column.lower(), notes).items() if group}


def _mapping(path: Path, key: str, value: str, notes: ReadingNotes, *, open_end: bool = False) -> dict[str, str]:
    """One column by another, empty if there is no file; an id with two values is a bad row. For `open_end` see TableFormat."""
    found: dict[str, str] = {}
    form = TableFormat(usual=",\t", open_end=open_end)
    for row in read_table(path, (key, value), notes, form) if path.is_file() else ():
        with notes.row(path, row.place):
            _put(found, bare_text(row.cells[key]), bare_text(row.cells[value]))
    return found


def _put(found: dict[str, ValueT], key: str, value: ValueT) -> None:
    if found.setdefault(key, value) != value:
        raise RowError(f"the id {key!r} stood before with another value; keep one of the two rows")


def _id(row: Row) -> str:
    key = bare_text(row.cells["id"])
    if not key:
        raise RowError("there is no id")
    return key


def _lines(path: Path, notes: ReadingNotes) -> Iterator[tuple[str, str]]:
    # splitlines() would also split at U+2028, U+0085 and the like, which occur inside captions
    lines = read_text(path, notes).replace("\r\n", "\n").split("\n")
    return ((f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())
