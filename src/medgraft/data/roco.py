"""Readers of ROCO v1 (Pelka et al. 2018), its copy on Kaggle, ROCOv2 and the ImageCLEFmedical caption CSVs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.text import clean_caption
from medgraft.errors import DataError
from medgraft.types import SPLITS, Example, Split

Subset = Literal["radiology", "non-radiology", "all"]
_SUFFIXES = (".jpg", ".jpeg", ".png")


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
        groups = read_groups(root / self.groups, self.group_column) if self.groups else {}
        for split, folder in present:
            yield from self._folder(split, folder, groups)

    def _folder(self, split: Split, folder: Path, groups: Mapping[str, str]) -> Iterator[Example]:
        names = _article_images(folder / "licences.txt")
        concepts = _concepts(folder / "cuis.txt")
        for line in _lines(folder / "captions.txt"):
            key, tab, caption = line.partition("\t")
            if not tab:
                raise DataError(f"{folder / 'captions.txt'}: the line {line[:60]!r} has no tab.")
            name = names.get(key)
            image = folder / "images" / f"{key}.jpg"
            if name and not image.exists() and (folder / "images" / name).exists():
                image = folder / "images" / name
            group = groups.get(key) or (name.partition("_")[0] if name else None)
            yield Example(key, image, (clean_caption(caption),), split, group, concepts=concepts.get(key))


class KaggleRoco(Dataset):
    """ROCO from Kaggle: `all_data/{train,validation,test}/radiology/` with `traindata.csv` (`id,name,caption`) and images."""

    subset: Subset = Field(default="radiology", description="which of ROCO's folders: radiology, non-radiology or all")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        root = require_folder(path, "roco-kaggle", "the folder that contains all_data/")
        root = root / "all_data" if (root / "all_data").is_dir() else root
        subsets = ("radiology", "non-radiology") if self.subset == "all" else (self.subset,)
        found = False
        stems: tuple[tuple[Split, str], ...] = (("train", "traindata"), ("validation", "valdata"), ("test", "testdata"))
        for split, stem in stems:
            for subset in subsets:
                tables = [f / f"{stem}.csv" for f in (root / split / subset, root / split)]
                table = next((t for t in tables if t.is_file()), None)
                if table is None:
                    continue
                found = True
                images = root / split / subset / "images"
                for row in read_table(table, ("id", "name", "caption")):
                    by_name = images / row["name"]
                    image = by_name if by_name.exists() else images / f"{row['id']}.jpg"
                    group = row["name"].partition("_")[0] or None
                    yield Example(row["id"], image, (clean_caption(row["caption"]),), split, group)
        if not found:
            raise DataError(f"{root} is not Kaggle's ROCO: no {{train,validation,test}}/{subsets[0]}/traindata.csv is there.")


class Rocov2(Dataset):
    """ROCOv2: `{train,valid,test}_captions.csv` (`ID,Caption`) and `{train,valid,test}_images/`, possibly nested once more.

    Concepts come from `{train,valid,test}_concepts.csv` (`ID,CUIs`, separated by `;`) if present.
    """

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        root = require_folder(path, "rocov2", "the folder that contains train_captions.csv")
        found = False
        stems: tuple[tuple[Split, str], ...] = (("train", "train"), ("validation", "valid"), ("test", "test"))
        for split, stem in stems:
            table = root / f"{stem}_captions.csv"
            if table.is_file():
                found = True
                listed = root / f"{stem}_concepts.csv"
                rows = read_table(listed, ("id", "cuis")) if listed.is_file() else ()
                concepts = {row["id"]: tuple(cui for cui in row["cuis"].split(";") if cui) for row in rows}
                for example in caption_rows(table, image_folder(root, stem), split):
                    yield replace(example, concepts=concepts.get(example.id))
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
        places: tuple[tuple[Split, str, str], ...] = (
            ("train", self.train, self.train_images),
            ("validation", self.validation, self.validation_images),
            ("test", self.test, self.test_images),
        )
        for split, name, images in places:
            if (root / name).is_file():
                found = True
                yield from caption_rows(root / name, image_folder(root, images), split)
        if not found:
            raise DataError(
                f"{root} holds none of {self.train}, {self.validation}, {self.test}; name them with --set data.train=..."
            )


def caption_rows(table: Path, images: Path, split: Split) -> Iterator[Example]:
    """Examples from a two-column caption table whose ids are file names, with or without extension."""
    for row in read_table(table, ("id", "caption")):
        yield Example(row["id"], find_image(images, row["id"]), (clean_caption(row["caption"]),), split)


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a CSV or TSV (by its header line) with lower-cased column names; DataError if a column is missing."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        tabbed = "\t" in header
        rows = csv.reader(file, delimiter="\t" if tabbed else ",", quoting=csv.QUOTE_NONE if tabbed else csv.QUOTE_MINIMAL)
        names = [name.strip().lower() for name in next(rows, [])]
        absent = [column for column in columns if column not in names]
        if absent:
            raise DataError(f"{path} has no column {', '.join(absent)}; its columns are {', '.join(names) or 'none'}.")
        for number, row in enumerate(rows, start=2):
            if row and len(row) < len(names):
                raise DataError(f"{path}, row {number}: {len(row)} fields where the header has {len(names)}.")
            if row:
                yield dict(zip(names, row, strict=False))


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


def read_groups(path: Path, column: str) -> dict[str, str]:
    """Id -> group from a CSV with an `id` column."""
    if not path.is_file():
        raise DataError(f"There is no groups file {path}.")
    return {row["id"]: row[column.lower()] for row in read_table(path, ("id", column.lower()))}


def _concepts(path: Path) -> dict[str, tuple[str, ...]]:
    """Id -> CUIs from lines of tab-separated fields; the second field is empty."""
    if not path.is_file():
        return {}
    lines = (line.split("\t") for line in _lines(path))
    return {key: tuple(cui for field in fields if (cui := field.strip())) for key, *fields in lines}


def _article_images(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return {row["roco_id"]: row["pmc_id"] for row in read_table(path, ("roco_id", "pmc_id"))}


def _lines(path: Path) -> Iterable[str]:
    # splitlines() would also split at U+2028, U+0085 and the like, which occur inside captions
    return (line for line in path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n") if line.strip())
