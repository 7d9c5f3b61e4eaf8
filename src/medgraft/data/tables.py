"""Readers of tables with an image and a caption column."""

from __future__ import annotations

import posixpath
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.column_names import GROUPS, usual_column
from medgraft.data.delimited import Row, TableFormat, read_delimited, require_unique
from medgraft.data.examples import ExampleList
from medgraft.data.notes import RowError
from medgraft.data.paths import IMAGE_SUFFIXES, image_file
from medgraft.data.prompts import check_template, fill_template
from medgraft.data.splits import hashed_split, split_named
from medgraft.data.text import kind, label, read_captions, shown
from medgraft.errors import DataError, suggestion
from medgraft.types import SPLITS, Example, Split

# what the columns are called where the default names are not there; fewer than in columns.py, as no types confirm them
_IMAGE_NAMES = ("image", "image_path", "img_path", "image_file", "file_name", "filename", "images")
_CAPTION_NAMES = ("caption", "captions", "text", "report")

SplitOf = Callable[[Path, Split | None], Split | None]


@dataclass(frozen=True)
class _Columns:
    """The columns that are read; `group` and `split` are None if there are none."""

    image: str
    caption: str
    group: str | None
    split: str | None


class Table(Dataset):
    """One row per image and caption; rows with the same image, and prompt if there are prompts, make one with several captions.

    `split` names a column with train/validation/test. Without it a column called `split` is used if it has names of splits;
    else images are split 80/10/10 by a hash of their group, or of their name if there are no groups. `images` is the folder of
    relative image paths, by default the table's. A column that was not named and is not there is looked for by other usual
    names, and so is one of patients or articles. The notes have all that was assumed.
    """

    image: str = Field(default="image", description="column of image paths")
    caption: str = Field(default="caption", description="column of captions")
    id: str | None = Field(default=None, description="column of ids; the image's path if not given")
    group: str | None = Field(default=None, description="column of patients or articles, each of which stays in one split")
    split: str | None = Field(default=None, description="column of splits; if there is none, 80/10/10 by group")
    images: str = Field(default=".", description="folder of the images, relative to the table")

    @abstractmethod
    def load(self, path: Path) -> tuple[list[str], list[Row]]:
        """The column names and the rows of the table; bad rows are noted."""

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        if path is None or not path.is_file():
            raise DataError(f"{path or 'No path'}: a table is needed: write csv:FILE, tsv:FILE, json:FILE or jsonl:FILE.")
        images = ExampleList(self.notes, merge=True, one_id=True)
        self.add_rows(images, path)
        yield from images.examples(path)

    def add_rows(self, images: ExampleList, path: Path, split_of: SplitOf = lambda image, named: named) -> None:
        """Add the table's rows to `images`; `split_of` gives the split of an image whose row names this one or none."""
        names, rows = self.load(path)
        columns = self._columns(path, names, rows)
        folder = path.parent / Path(self.images).expanduser()
        template = self.prompt_template
        if template is not None:
            check_template(template, names, str(path))
        asked: dict[str, dict[str, int]] = {}  # numbers the prompts of each image
        without_group = 0
        notes = self.notes
        for row in rows:
            with notes.row(path, row.place):
                listed = self.listed_images(_cell(row, columns.image))
                (name, image), *more = (image_file(one, folder, notes.root) for one in listed)
                captions = self.captions(_cell(row, columns.caption))
                prompt = None if template is None else fill_template(template, row.cells)
                key = label(_cell(row, self.id), "id") if self.id else _numbered(name, prompt, asked)
                if key is None:
                    raise RowError(f"the column {self.id!r} has no id")
                group = label(_cell(row, columns.group), "group") if columns.group else None
                split = split_of(image, _named_split(row, columns.split))
                without_group += bool(columns.group) and group is None
                by = group or posixpath.normpath(name)
                group = group if prompt is None else by  # all that is asked of one image belongs together
                example = Example(
                    key, image, captions, split or hashed_split(by), group, facts=self.facts(row), prompt=prompt,
                    more_images=tuple(file for _, file in more),
                )  # fmt: skip
                images.add(example, path, row.place, hashed=split is None)
        if without_group:
            notes.assumed(f"{path.name}: {without_group} rows have no {columns.group!r}; each image counts as a group.")

    def captions(self, value: Any) -> tuple[str, ...]:
        """The captions in a cell; RowError if it holds anything else."""
        return read_captions(value)

    def listed_images(self, value: Any) -> Sequence[Any]:
        """What a cell writes for each of its images; one at least."""
        return (value,)

    def facts(self, row: Row) -> Mapping[str, Any] | None:
        """The facts in a row, None if there are none."""
        return None

    def _columns(self, path: Path, names: Sequence[str], rows: Sequence[Row]) -> _Columns:
        if not names:
            bad = self.notes.bad_rows
            raise DataError(f"{path} has no rows that can be read{f': {len(bad)} are bad, such as {bad[0]}' if bad else ''}.")
        image = self._column(path, names, "image", _IMAGE_NAMES)
        caption = self._column(path, names, "caption", _CAPTION_NAMES)
        for column in filter(None, (self.id, self.group, self.split)):
            if column not in names:
                raise DataError(_no_column(path, column, names))
        group = self.group or self._unnamed_group(path, names, rows)
        split = self.split or self._unnamed_split(path, names, rows)
        require_unique(path, names, [name for name in (image, caption, self.id, group, split) if name])
        return _Columns(image, caption, group, split)

    def _column(self, path: Path, names: Sequence[str], what: str, usual: Sequence[str]) -> str:
        """The image or caption column: the one asked for, or the only one with a usual name."""
        asked: str = getattr(self, what).strip()
        if asked in names:
            return asked
        found = list(dict.fromkeys(name for name in names if name.casefold() in usual))
        if what in self.model_fields_set or len(found) != 1:
            raise DataError(_no_column(path, asked, names))
        self.notes.assumed(f"{path.name} has no column {asked!r}; its column {found[0]!r} was read as the {what}.")
        return found[0]

    def _unnamed_group(self, path: Path, names: Sequence[str], rows: Sequence[Row]) -> str | None:
        """A column with a usual name of patients or articles, if each of its values may be one."""
        column = usual_column(names, GROUPS)
        values = [row.cells.get(column) for row in rows] if column else []
        if column in (self.image, self.caption) or not any(values) or not all(isinstance(v, str | int | None) for v in values):
            return None
        self.notes.assumed(f"{path.name}: its column {column!r} was read as the group.")
        return column

    def _unnamed_split(self, path: Path, names: Sequence[str], rows: Sequence[Row]) -> str | None:
        """A column called `split`, if any of its values names one; a row whose value does not is then a bad row."""
        column = usual_column(names, ("split",))
        if column is None:
            return None
        values = [row.cells.get(column) for row in rows]
        if any(map(split_named, values)):
            self.notes.assumed(f"{path.name}: splits are those in its column {column!r}.")
            return column
        example = next((f", such as {shown(value)}," for value in values if value), "")
        self.notes.assumed(f"{path.name}: the column {column!r} is not used, as its values{example} are no names of splits.")
        return None


class CsvTable(Table):
    """A table with a header, by commas; semicolons, tabs and pipes are found from the header. Quotes enclose cells.

    Text is UTF-8, UTF-16 with a byte order mark, or else cp1252.
    """

    delimiter: str | None = Field(
        default=None, description="comma, semicolon, tab, pipe or a character between cells; found from the header if not given"
    )
    encoding: str | None = Field(default=None, description="encoding of the text, such as gb18030; UTF-8 or else cp1252")

    def load(self, path: Path) -> tuple[list[str], list[Row]]:
        """See Table.load."""
        known = (*_IMAGE_NAMES, *_CAPTION_NAMES, self.image, self.caption, self.id, self.group, self.split)
        return read_delimited(path, [name for name in known if name], self.notes, self._format())

    def _format(self) -> TableFormat:
        return TableFormat(self.delimiter, self.encoding, usual=",", tabs_quote=True)


class TsvTable(CsvTable):
    """A table with a header, by tabs; quotes are ordinary characters, unless commas or semicolons separate the cells."""

    def _format(self) -> TableFormat:
        return TableFormat(self.delimiter, self.encoding, usual="\t")


def _cell(row: Row, column: str) -> Any:
    if column not in row.cells:
        raise RowError(f"there is no {column!r}; write it, as null if there is none")
    return row.cells[column]


def _numbered(name: str, prompt: str | None, asked: dict[str, dict[str, int]]) -> str:
    """The id of an image's row: its name, with a number behind it from the second prompt of the image on."""
    if prompt is None:
        return name
    numbers = asked.setdefault(name, {})
    number = numbers.setdefault(prompt, len(numbers) + 1)
    return name if number == 1 else f"{name}#{number}"


def _named_split(row: Row, column: str | None) -> Split | None:
    if column is None:
        return None
    value = row.cells.get(column)
    split = split_named(value)
    if split is None:
        raise RowError(f"{shown(value) if isinstance(value, str) else kind(value)} is not a split; use {', '.join(SPLITS)}")
    return split


def _no_column(path: Path, column: str, names: Sequence[str]) -> str:
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return f"{path} has no {column!r}, as its first row is {', '.join(names)!r}. The first row must name the columns."
    shown_names = ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:20])
    return (
        f"{path} has no {column!r}.{suggestion(column, names)} Columns: {shown_names or 'none'}. "
        "Set the column names with --set data.image=... data.caption=..."
    )
