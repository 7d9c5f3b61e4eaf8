"""Hugging Face data sets: from the hub, as `save_to_disk` leaves them, and as parquet or arrow files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from medgraft.data.arrow import ArrowFile, Encoded
from medgraft.data.base import Dataset
from medgraft.data.columns import Columns, find_columns, is_image
from medgraft.data.members import member_at
from medgraft.data.notes import RowError
from medgraft.data.paths import image_file
from medgraft.data.prompts import check_template, fill_template
from medgraft.data.splits import hashed_split, note_hashed, split_in_path, split_named
from medgraft.data.text import label, read_captions, shown
from medgraft.errors import DataError
from medgraft.file_index import cache_folder
from medgraft.progress import bars_are_shown
from medgraft.types import Example, ImageSource, Split

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class _Table:
    """Rows of one split: their Arrow files, the split in their names, what messages name, and the folder of image paths."""

    files: Sequence[ArrowFile]
    split: Split | None
    source: Path
    folder: Path | None = None


class HubDataset(Dataset):
    """A hub id, a folder that `save_to_disk` wrote, or parquet or arrow files: one, or a folder of them.

    Columns that are not named are found. Splits are those of the hub, or whole words in names of files and folders, or a
    column; data without any, or with `train` alone, are split 80/10/10 by a hash of group or id. An image is an Image of
    `datasets`, bytes, or a path. Images stay where they are in Arrow files; parquet is copied to Arrow in medgraft's cache.
    """

    takes_names: ClassVar[bool] = True

    revision: str | None = Field(default=None, description="commit, branch or tag on the hub")
    config: str | None = Field(default=None, description="configuration of a hub data set, or the folder of its files")
    image: str | None = Field(default=None, description="column of images or their paths; found if not given")
    caption: str | None = Field(default=None, description="column of captions; found if not given")
    id: str | None = Field(default=None, description="column of ids; found if not given, else the row numbers")
    group: str | None = Field(default=None, description="column of patients or articles, each in one split; found if not given")
    split: str | None = Field(default=None, description="column of splits, instead of those that names say; found if not given")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        if path is None:
            raise DataError("Data 'hf' needs a hub id, a folder or a file: write hf:USER/NAME or hf:PATH.")
        tables = [table for table in self._tables(path) if table.files]
        if not tables:
            raise DataError(f"hf:{path} has no rows.")
        columns, template = self._columns(f"hf:{path}", tables), self.prompt_template
        by_hash = columns.split is None and _undivided(tables)
        hashed: Counter[Split] = Counter()
        rows: Counter[Split | None] = Counter()
        for table in tables:
            if table.split is None and columns.split is None and not by_hash:
                self.notes.bad_row(table.source, "its name", "says no split; rename it after train, validation or test")
                continue
            for number, (image, values) in enumerate(_rows(table, columns), start=1):
                rows[table.split] += 1
                with self.notes.row(table.source, f"row {number}"):
                    source = self._image(table, image, number)
                    split = None if by_hash else table.split
                    example = _example(source, values, columns, split, str(rows[table.split]))
                    hashed[example.split] += by_hash
                    yield example if template is None else replace(example, prompt=fill_template(template, values))
        note_hashed(self.notes, path, hashed)

    def _tables(self, path: Path) -> list[_Table]:
        if not path.exists():
            return self._from_hub(path)
        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            loaded = _loaded(str(path), lambda: datasets.load_from_disk(str(path)))
            parts = loaded.items() if isinstance(loaded, dict) else [("", loaded)]
            return [_Table(_files(part), split_in_path(Path(name), path), path / name, path) for name, part in parts]
        files = [path] if path.is_file() else sorted(p for kind in ("parquet", "arrow") for p in path.rglob(f"*.{kind}"))
        files = [file for file in files if self.config is None or self.config in file.relative_to(path).parts]
        kinds = {file.suffix for file in files}
        if kinds not in ({".parquet"}, {".arrow"}):
            found = f"holds {' and '.join(sorted(kinds))} files" if kinds else "holds no parquet or arrow files"
            raise DataError(f"{path} {found}. hf reads files of parquet, or of arrow, or a folder that save_to_disk wrote.")
        if kinds == {".parquet"}:  # datasets does not read files without rows
            files = [file for file in files if _loaded(str(file), partial(pq.read_metadata, file)).num_rows]
        opened = self._as_arrow(files) if kinds == {".parquet"} else [[ArrowFile(file)] for file in files]
        names = [file.name if path.is_file() else str(file.relative_to(path)) for file in files]
        return [
            _Table(arrow, split_in_path(Path(name), file), file, file.parent)
            for arrow, name, file in zip(opened, names, files, strict=True)
        ]

    def _from_hub(self, path: Path) -> list[_Table]:
        name = path.as_posix()
        if not _HUB_ID.fullmatch(name) or path.suffix in (".parquet", ".arrow"):
            raise DataError(f"There is no {path}, and it is no hub id such as USER/NAME. Check the path.")
        loaded = _loaded(
            f"There is no folder {name}, and the hub's {name}",
            lambda: datasets.load_dataset(name, self.config, revision=self.revision),
        )
        return [_Table(_files(part), split_in_path(Path(split), path), path / split) for split, part in loaded.items()]

    def _as_arrow(self, files: Sequence[Path]) -> list[list[ArrowFile]]:
        """Parquet files as Arrow in medgraft's cache, since reading one row of parquet decodes thousands."""
        if not files:
            return []
        columns = [set(_loaded(str(file), partial(pq.read_schema, file)).names) for file in files]
        _check_same(columns, files)
        named = {f"part{number}": [str(file)] for number, file in enumerate(files)}
        folder = cache_folder() / "arrow"
        where = str(files[0] if len(files) == 1 else files[0].parent)
        loaded = _loaded(where, lambda: datasets.load_dataset("parquet", data_files=named, cache_dir=str(folder)))
        opened = [_files(loaded[name]) for name in named]
        pa.default_memory_pool().release_unused()
        size = sum(arrow.path.stat().st_size for arrows in opened for arrow in arrows)
        self.notes.assumed(f"Parquet was copied to Arrow for random access: {size / 1e9:.2f} GB in {folder}.")
        return opened

    def _columns(self, where: str, tables: Sequence[_Table]) -> Columns:
        """The columns of images, captions and the like, the same in all tables; `split` only if splits come from it."""
        files = [file for table in tables for file in table.files]
        kinds = files[0].kinds
        _check_same([file.kinds for file in files], [file.path for file in files])
        named = {what: getattr(self, what) for what in ("image", "caption", "id", "group", "split")}
        found = find_columns(named, kinds, where, self.notes)
        if self.prompt_template is not None:
            texts = [name for name, column in kinds.items() if not is_image(column)]
            found = replace(found, prompt=check_template(self.prompt_template, texts, where))
        if found.split and not self.split:
            ignored = "as files or the hub have splits"
            if _undivided(tables):
                columns = [pc.unique(file.column(found.split)).to_pylist() for file in files]
                values = dict.fromkeys(chain.from_iterable(columns))
                odd = next((value for value in values if split_named(value) is None), None)
                ignored = "" if any(map(split_named, values)) else f"as values such as {shown(odd)} are no names of splits"
            if ignored:
                self.notes.assumed(f"Column {found.split!r} is not used, {ignored}. To use it: --set data.split={found.split}")
                found = replace(found, split=None)
        if found.id and not self.id and any(_has_twice(found.id, files) for files in _by_split(tables)):
            self.notes.assumed(f"Ids are row numbers, since {found.id!r} has values twice; rows that share one share a split.")
            found = replace(found, ids_differ=False)
        return found

    def _image(self, table: _Table, image: tuple[ArrowFile, Encoded], row: int) -> ImageSource:
        file, encoded = image
        if isinstance(encoded, tuple):
            return member_at(file.path, f"row {row}", *encoded)
        if table.folder is None and encoded is not None:
            raise RowError(f"the image {shown(encoded)} is not in the data set, which has only its path")
        return image_file(encoded, table.folder or Path(), self.notes.root)[1]


def _check_same(columns: Sequence[Any], files: Sequence[Path]) -> None:
    """DataError unless `columns`, those of each of `files`, are the same in all."""
    for found, file in zip(columns, files, strict=True):
        if found != columns[0]:
            raise DataError(f"{file} has other columns than {files[0]}. Name the folder of one kind, or a file.")


def _by_split(tables: Sequence[_Table]) -> Iterator[list[ArrowFile]]:
    for split in {table.split for table in tables}:
        yield [file for table in tables if table.split == split for file in table.files]


def _has_twice(column: str, files: Sequence[ArrowFile]) -> bool:
    values = pa.chunked_array([chunk for file in files for chunk in file.column(column).chunks])
    return bool(pc.count_distinct(values, mode="all").as_py() < len(values))


def _undivided(tables: Sequence[_Table]) -> bool:
    """Whether no name has a split, or each has `train`, which is what `datasets` calls data without splits."""
    return {table.split for table in tables} in ({None}, {"train"})


def _rows(table: _Table, columns: Columns) -> Iterator[tuple[tuple[ArrowFile, Encoded], dict[str, Any]]]:
    for file in table.files:
        for encoded, values in file.rows(columns.image, columns.values):
            yield (file, encoded), values


def _example(image: ImageSource, values: Mapping[str, Any], columns: Columns, split: Split | None, number: str) -> Example:
    """The example of a row; `split` None: that of its column, or by hash."""
    key = label(values[columns.id], "id") if columns.id else number
    if key is None:
        raise RowError("the id is empty")
    caption = values[columns.caption]
    captions = read_captions(None if isinstance(caption, float) and math.isnan(caption) else caption)
    group = label(values[columns.group], "group") if columns.group else None
    if columns.split:
        split = split_named(values[columns.split])
        if split is None:
            raise RowError(f"{shown(values[columns.split])} is no split; write train, validation or test")
    concepts = values[columns.concepts] if columns.concepts else None
    if concepts is not None:
        listed = re.split(r"[;,\s]+", concepts) if isinstance(concepts, str) else concepts
        concepts = tuple(concept.strip() for concept in listed if concept and concept.strip())
    split = split or hashed_split(group or key)
    return Example(key if columns.ids_differ else number, image, captions, split, group, concepts=concepts)


def _files(part: Any) -> list[ArrowFile]:
    """The Arrow files of a `datasets.Dataset`, in the order of its rows."""
    if part._indices is not None:
        raise DataError("The saved data set is a selection of rows of its files. Save it with flatten_indices() before.")
    return [ArrowFile(Path(file["filename"])) for file in part.cache_files]


def _loaded(what: str, load: Callable[[], Any]) -> Any:
    """What `load` gives; DataError that `what` cannot be read, whatever `datasets` raises, which is of many kinds."""
    hidden = datasets.utils.are_progress_bars_disabled()
    if not bars_are_shown():
        datasets.disable_progress_bars()
    try:
        return load()
    except Exception as error:
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error  # datasets' own says little
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"{what} cannot be read: {reason}") from None
    finally:
        if not hidden:
            datasets.enable_progress_bars()
