"""Brings the rows of a data set together into examples, one for each image, and refuses rows that contradict each other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from medgraft.data.notes import ReadingNotes
from medgraft.data.splits import note_hashed
from medgraft.types import Example, Split


@dataclass
class ExampleList:
    """Examples in the order of their first rows. `merge`: a table's rows with the same image and prompt are one example.

    Bad rows are those whose image stands in another split or, with `merge`, another table; whose group is not that of the
    image's first row; or whose id is taken by another image: in the same split, or in any with `one_id`.
    """

    notes: ReadingNotes
    merge: bool = False
    one_id: bool = False
    _examples: list[Example] = field(default_factory=list)
    _files: dict[str, tuple[int, Path, str]] = field(default_factory=dict)  # the example and the row of each image file
    _ids: dict[tuple[Split | None, str], tuple[Path, str]] = field(default_factory=dict)
    _hashed: Counter[Split] = field(default_factory=Counter)
    _repeated: int = 0

    def add(self, example: Example, file: Path, place: str, *, hashed: bool = False) -> None:
        """Add what `place` of `file` says; `hashed`: its split is by hash."""
        asked = "" if example.prompt is None else f"\0{example.prompt}"
        images = [os.path.normpath(str(image)) + asked for image in example.images]
        for index, first_file, first_place in (self._files[image] for image in images if image in self._files):
            where, first = _at(first_file, first_place, file), self._examples[index]
            problem = _contradiction(example, first, where)
            if problem is None and self.merge and first_file != file:
                problem = f"{where} has the same image; keep one of them"
            if problem is None and self.merge and (example.more_images or first.more_images) and example.images != first.images:
                problem = f"{where} has one of its images beside others; list the same images in both"
            if problem:
                return self.notes.bad_row(file, place, problem)
            if self.merge:
                return self._merge(index, example, file)
        key = (None if self.one_id else example.split, example.id)
        if taken := self._ids.get(key):
            problem = f"the id {example.id!r} is that of {_at(*taken, file)} too; each image needs an id of its own"
            return self.notes.bad_row(file, place, problem)
        self._ids[key] = file, place
        for image in images:
            self._files.setdefault(image, (len(self._examples), file, place))
        self._examples.append(example)
        self._hashed[example.split] += hashed
        return None

    def images(self) -> set[str]:
        """The normalised path of every image."""
        return {image.partition("\0")[0] for image in self._files}

    def examples(self, path: Path) -> Iterator[Example]:
        """The examples; repeated captions and how many were split by hash are noted for the data at `path`."""
        if self._repeated:
            self.notes.assumed(f"{path.name}: {self._repeated} rows repeat a caption of the same image; all are kept.")
        note_hashed(self.notes, path, self._hashed)
        yield from self._examples

    def _merge(self, index: int, example: Example, file: Path) -> None:
        first = self._examples[index]
        if example.id != first.id and self.one_id:
            self.notes.assumed(f"{file.name}: some images have rows with several ids; the first was used.")
        self._repeated += sum(caption in first.captions for caption in example.captions)
        self._examples[index] = replace(first, captions=first.captions + example.captions)


def _contradiction(example: Example, first: Example, where: str) -> str | None:
    if example.group != first.group:
        return f"the group is {example.group!r}, but {where} has the same image in group {first.group!r}; correct one of them"
    if example.split != first.split:
        return f"the split is {example.split}, but {where} has the same image in {first.split}; keep one of them"
    return None


def _at(file: Path, place: str, current: Path) -> str:
    return place if file == current else f"{file}, {place}"
