"""Many examples in little memory."""

from __future__ import annotations

import json
import mmap
import tempfile
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, overload

from medgraft.file_index import cache_folder
from medgraft.types import Example, ImagePart, ImageSource


class ExampleTable(Sequence[Example]):
    """Examples as lines of JSON in a temporary file that is mapped into memory; each access makes an `Example` anew.

    So an image takes a few bytes of memory that the system cannot take back. Processes forked from this one share all of it, as
    it has no objects whose reference counts would be written to.
    """

    def __init__(self, examples: Iterable[Example]):
        self._ends = array("Q")
        self._facts: dict[int, Mapping[str, Any]] = {}  # as they are: a plugin's need not be JSON
        folders: dict[str, int] = {}
        end = 0
        with _temporary_file() as file:
            for example in examples:
                if example.facts is not None:
                    self._facts[len(self._ends)] = example.facts
                texts = example.captions, example.split, example.group, example.concepts, example.prompt
                values = example.id, [_packed(image, folders) for image in example.images], *texts
                end += file.write(json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass"))
                self._ends.append(end)
            file.flush()
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if end else b""
        # as new objects: those from in between the reader's would keep Python from giving the reader's memory back
        names = "\0".join(folders)
        del folders
        self._folders = [Path(folder) for folder in names.split("\0")]

    def __getstate__(self) -> dict[str, Any]:
        """With the lines themselves, for a process that is not forked from this one."""
        return {**self.__dict__, "_lines": self._lines[:]}

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self))[index]
        line = self._lines[self._ends[place - 1] if place else 0 : self._ends[place]].decode("utf-8", "surrogatepass")
        key, images, captions, split, group, concepts, prompt = json.loads(line)
        image, *more = (self._image(*packed) for packed in images)
        return Example(
            key,
            image,
            tuple(captions),
            split,
            group,
            self._facts.get(place),
            None if concepts is None else tuple(concepts),
            prompt,
            tuple(more),
        )

    def _image(self, folder: int, name: str, part: Sequence[Any] | None) -> ImageSource:
        path = self._folders[folder] / name
        return path if part is None else ImagePart(path, *part)


def _packed(image: ImageSource, folders: dict[str, int]) -> tuple[int, str, tuple[str | None, int | None, str | None] | None]:
    """The folder's number, which is added to `folders`, the file's name, and what an ImagePart has besides."""
    path = image.path if isinstance(image, ImagePart) else image
    part = (image.member, image.frame, image.window) if isinstance(image, ImagePart) else None
    return folders.setdefault(str(path.parent), len(folders)), path.name, part


def _temporary_file() -> IO[bytes]:
    """A file without a name in medgraft's cache, or where that is read-only where the system has such files."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()
