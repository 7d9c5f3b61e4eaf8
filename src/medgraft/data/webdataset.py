"""WebDataset: tar archives in which the files of one stem are an image and its caption."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.members import member_at
from medgraft.data.notes import RowError
from medgraft.data.splits import hashed_split, note_hashed, split_in_path
from medgraft.data.text import label, read_captions
from medgraft.errors import DataError
from medgraft.types import Example, ImagePart, Split

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "dcm", "dicom", "nii", "nii.gz")
_TEXTS = ("txt", "caption", "text")
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}
_END = 1 << 16  # bytes after the last entry that have to be zero, as far as they are there
_SUFFIX = re.compile(r"\.(nii\.gz|[^./]+)$", re.IGNORECASE)


@dataclass
class _Sample:
    """The files of one stem, as far as they have been read."""

    images: list[ImagePart] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    about: Any = None  # the content of its JSON file

    @property
    def complete(self) -> bool:
        """Whether it has an image, and a text or JSON file."""
        return bool(self.images) and (bool(self.texts) or self.about is not None)

    def add(self, suffix: str, content: bytes) -> None:
        """Add a text or JSON file. RowError if it cannot be read."""
        try:
            text = content.decode("utf-8-sig")
            if suffix == "json":
                self.about = json.loads(text)
            else:
                self.texts.append(text)
        except UnicodeDecodeError as error:
            raise RowError(f"this is not UTF-8 text: {error.reason}") from None
        except json.JSONDecodeError as error:
            raise RowError(f"this is not JSON: {error}") from None


class WebDataset(Dataset):
    """A tar, a folder of tars or a pattern of names: `train-{000..011}.tar`, `shards/*.tar`.

    A sample is an image (`KEY.jpg`, `.png`, `.dcm`, ...) with `KEY.txt`, `KEY.caption`, or `KEY.json` with a key for the
    caption. Splits are whole words in the names of tars, of their folders or of folders inside; without any, samples are split
    80/10/10 by a hash of their group or id. An id is the tar's name and the key. Images are read from the tars, which
    therefore must not be compressed.
    """

    takes_names: ClassVar[bool] = True

    caption: str = Field(default="caption", description="key of captions in JSON files")
    group: str | None = Field(default=None, description="key of patients or articles in JSON files; each stays in one split")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        if path is None:
            raise DataError(
                "Data 'webdataset' needs a tar, a folder of tars, or a pattern such as webdataset:train-{000..011}.tar."
            )
        shards = _shards(path)
        named = {
            shard: split_in_path(shard.relative_to(path) if path.is_dir() else Path(shard.name), shard) for shard in shards
        }
        hashed: Counter[Split] = Counter()
        divided = True if any(named.values()) else None  # whether names have splits; None: not known yet
        for shard, split in named.items():
            if split is None and any(named.values()):
                self.notes.bad_row(shard, "its name", "says no split, as other tars do; rename it after one")
                continue
            for key, sample in self._samples(shard):
                with self.notes.row(shard, key):
                    given = split or split_in_path(PurePosixPath(key).parent, shard)
                    divided = given is not None if divided is None else divided
                    if divided != (given is not None):
                        raise RowError("some samples lie in folders that say a split, and others do not")
                    example = self._example(f"{shard.stem}/{key}", sample, given)
                    hashed[example.split] += not divided
                    yield example
        note_hashed(self.notes, path, hashed)

    def _example(self, key: str, sample: _Sample, split: Split | None) -> Example:
        if len(sample.images) != 1:
            raise RowError(f"there are {len(sample.images)} images of this name; a sample has one")
        about = sample.about if isinstance(sample.about, dict) else {self.caption: sample.about}
        captions = tuple(text for found in sample.texts for text in read_captions(found))
        group = label(about.get(self.group), "group") if self.group else None
        split = split or hashed_split(group or key)
        return Example(key, sample.images[0], captions or read_captions(about.get(self.caption)), split, group)

    def _samples(self, shard: Path) -> Iterator[tuple[str, _Sample]]:
        """The samples of a tar by key, each as soon as the next begins; those whose files do not lie together come last."""
        waiting: dict[str, _Sample] = {}
        last = ""
        with shard.open("rb") as file:
            for entry in self._entries(shard, file):
                name = entry.name.removeprefix("./")
                found = _SUFFIX.search(name)
                suffix = found[1].lower() if found else ""
                if suffix not in (*_IMAGES, *_TEXTS, "json") or PurePosixPath(name).name.startswith("."):
                    continue
                key = name[: -len(suffix) - 1]
                if key != last and last in waiting and waiting[last].complete:
                    yield last, waiting.pop(last)
                last = key
                sample = waiting.setdefault(key, _Sample())
                if suffix in _IMAGES:
                    sample.images.append(member_at(shard, name, entry.offset_data, entry.size))
                    continue
                file.seek(entry.offset_data)
                with self.notes.row(shard, name):
                    sample.add(suffix, file.read(entry.size))
        yield from waiting.items()

    def _entries(self, shard: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
        """The regular files in a tar, which is read in one pass; where it is broken is a bad row."""
        start = file.read(2)
        if start in _COMPRESSED:
            raise DataError(
                f"{shard} is compressed, and images are read from within. Unpack it first: {_COMPRESSED[start]} {shard}"
            )
        file.seek(0)
        last, bytes_there = "its beginning", shard.stat().st_size
        try:
            tar: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - `file` is closed by the caller
            while (entry := tar.next()) is not None:
                tar.members = []  # which would keep every entry
                if entry.offset_data + entry.size > bytes_there:
                    raise tarfile.ReadError(f"{entry.name} is cut off")
                last = entry.name
                if entry.isreg() and not entry.issparse():
                    yield entry
            file.seek(tar.offset)
            end = file.read(_END)
            if len(end) < tarfile.BLOCKSIZE or any(end):
                raise tarfile.ReadError("no end mark, or more data behind it")
        except tarfile.TarError as error:
            self.notes.bad_row(shard, f"after {last}", f"the archive is broken: {error}; copy it again")


def _shards(path: Path) -> list[Path]:
    """The tars in a folder, or of a name or pattern. DataError if there is none."""
    if path.is_dir():
        found = sorted(path.rglob("*.tar"))
        packed = sorted(file for kind in ("tar.*", "tgz") for file in path.rglob(f"*.{kind}"))
        if packed:
            raise DataError(f"{packed[0]} is compressed, and images are read from within. Unpack it first, such as by gunzip.")
        if not found:
            raise DataError(
                f"{path} holds no .tar files. webdataset reads a tar, a folder of tars, or a pattern of their names."
            )
        return found
    found = []
    for pattern in _without_braces(str(path)):
        name = Path(pattern)
        root = Path(name.anchor)
        files = [name] if name.is_file() else sorted(root.glob(str(name.relative_to(root))))
        if not files:
            raise DataError(f"There is no {pattern}, which data 'webdataset' should read. Check the path.")
        found += files
    return list(dict.fromkeys(found))


def _without_braces(pattern: str) -> list[str]:
    """`a-{000..011}.tar` and `{a,b}.tar` as the names that a shell would make of them."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    choices = found[1].split(",")
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last = numbers.groups()
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return [name for choice in choices for name in _without_braces(pattern[: found.start()] + choice + pattern[found.end() :])]
