"""Reader of Hugging Face's imagefolder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.delimited import Row
from medgraft.data.examples import ExampleList
from medgraft.data.json_lists import JsonlTable
from medgraft.data.notes import RowError
from medgraft.data.paths import IMAGE_SUFFIXES
from medgraft.data.splits import hashed_split, split_in_name
from medgraft.data.tables import CsvTable, Table
from medgraft.data.text import read_captions, read_text
from medgraft.errors import DataError, first_line
from medgraft.types import SPLITS, Example, Split


class ImageFolder(Dataset):
    """Hugging Face's imagefolder: `metadata.csv`, `.jsonl` or `.parquet` with `file_name`, in the folder, each split's or both.

    Without such a file the captions are texts beside the images, `NAME.txt` for `NAME.png`. A folder called after a split is
    its images' split. Images that no row names are counted in the notes.
    """

    caption: str = Field(default="text", description="column of captions")
    format: Literal["auto", "csv", "jsonl", "parquet", "txt"] = Field(
        default="auto", description="which metadata file, or txt beside images; auto: what is there"
    )

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        if path is None or not path.is_dir():
            raise DataError(f"{path or 'No path'}: imagefolder needs a folder with metadata.csv, .jsonl or .parquet.")
        folders = _split_folders(path)
        tables = [(split, table) for split, folder in (*folders, (None, path)) if (table := self._table(folder))]
        images = ExampleList(self.notes, merge=True)
        if not tables:
            self._add_texts(images, path, _SplitByFolder(path, None, bool(folders)))
            yield from images.examples(path)
            return
        for split, table in tables:
            self._reader(table).add_rows(images, table, _SplitByFolder(path, split, bool(folders)))
        yield from images.examples(path)
        self._note_unnamed(path, images.images())

    def _table(self, folder: Path) -> Path | None:
        kinds = {"auto": ("csv", "jsonl", "parquet"), "txt": ()}.get(self.format, (self.format,))
        found = [table for kind in kinds if (table := folder / f"metadata.{kind}").is_file()]
        if len(found) > 1:
            names = " and ".join(table.name for table in found)
            raise DataError(f"{folder} has {names}. Remove all but one, or choose with data.format={found[0].suffix[1:]}.")
        return found[0] if found else None

    def _add_texts(self, images: ExampleList, path: Path, split_of: _SplitByFolder) -> None:
        """Add all images in `path`, with the text of the file `NAME.txt` beside each as its caption, or none."""
        files = sorted(_images_in(path))
        texts = {file: text for file in files if (text := file.with_suffix(".txt")).is_file()}
        if not texts:
            raise DataError(
                f"{path} holds no metadata.csv, .jsonl or .parquet, nor do its train/, validation/ or test/ folders, and no "
                "image has a text file NAME.txt beside it. Write metadata.csv with the columns file_name and text."
            )
        self.notes.assumed(f"{path.name}: captions are {len(texts)} text files beside the images.")
        for file in files:
            with self.notes.row(file, "its place"):
                name, split = file.relative_to(path).as_posix(), split_of(file, None)
                captions = read_captions(read_text(texts[file], self.notes)) if file in texts else ()
                images.add(Example(name, file, captions, split or hashed_split(name)), file, "its place", hashed=split is None)

    def _reader(self, table: Path) -> Table:
        kinds: dict[str, type[Table]] = {".csv": CsvTable, ".jsonl": JsonlTable, ".parquet": _ParquetTable}
        asked = self.model_fields_set & {"caption"}  # else the column may have another usual name
        reader = kinds[table.suffix].model_construct(_fields_set=asked, image="file_name", caption=self.caption)
        reader.use_notes(self.notes)
        return reader

    def _note_unnamed(self, path: Path, named: set[str]) -> None:
        there = {os.path.normpath(str(file)) for file in _images_in(path)}
        if unnamed := there - named:
            shown = Path(min(unnamed)).relative_to(path)
            self.notes.assumed(f"{len(unnamed)} images in {path.name} are left out, as no row names them, such as {shown}.")


class _ParquetTable(Table):
    def load(self, path: Path) -> tuple[list[str], list[Row]]:
        """See Table.load."""
        from pyarrow import parquet

        try:
            table = parquet.read_table(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are these
            raise DataError(f"{path} cannot be read as parquet: {first_line(error)}") from None
        rows = [Row(f"row {number}", cells) for number, cells in enumerate(table.to_pylist(), start=1)]
        return list(table.column_names), rows


def _images_in(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("[!.]*") if file.suffix.lower() in IMAGE_SUFFIXES)


def _split_folders(path: Path) -> list[tuple[Split, Path]]:
    """The folders in `path` that are called after a split, in the order of splits."""
    found = [(split, folder) for folder in path.iterdir() if folder.is_dir() and (split := _split_of(folder.name))]
    return sorted(found, key=lambda item: (SPLITS.index(item[0]), item[1]))


def _split_of(name: str) -> Split | None:
    try:
        return split_in_name(name)
    except RowError:  # such as train_val, which is no split
        return None


@dataclass(frozen=True)
class _SplitByFolder:
    """The split of an image in `root`: that of its row, its table, and the folders that it lies in."""

    root: Path
    of_table: Split | None
    required: bool

    def __call__(self, image: Path, named: Split | None) -> Split | None:
        """RowError if they differ, or if there is none although one is required."""
        steps = Path(os.path.relpath(os.path.normpath(image), self.root)).parts[:-1]
        found = {split for split in (named, self.of_table, *map(_split_of, steps)) if split}
        if len(found) > 1:
            lies = f"the image lies in {'/'.join(steps) or 'the folder itself'}"
            raise RowError(f"{lies}, but its row, table and folders say {' and '.join(sorted(found))}; give it one split")
        if not found and self.required:
            raise RowError("the image lies in no split's folder, as others do; move it there or add a column split")
        return next(iter(found), None)
