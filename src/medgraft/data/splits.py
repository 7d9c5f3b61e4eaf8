"""Names of splits as people write them, and a split for data that has none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from medgraft.data.notes import ReadingNotes, RowError
from medgraft.errors import DataError
from medgraft.types import SPLITS, Split

_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "eval": "validation", "test": "test", "testing": "test",
}  # fmt: skip


def split_named(name: object) -> Split | None:
    """The split that `name` says as a whole, in any case; None if it says none."""
    return _NAMES.get(name.strip().lower()) if isinstance(name, str) else None


def split_in_name(name: str) -> Split | None:
    """The split that is a whole word of a file's or folder's name, such as `captions_val2017`; RowError if there are two."""
    words = (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
    found = {split for word in words if (split := _NAMES.get(word))}
    if len(found) > 1:
        raise RowError(f"the name {name!r} says {' and '.join(sorted(found))}; rename it after one split")
    return next(iter(found), None)


def split_in_path(path: PurePath, file: Path) -> Split | None:
    """The split that the last part of `path` says, else the folder above it, and so on; DataError for `file` if two."""
    try:
        return next((split for part in reversed(path.parts) if (split := split_in_name(part))), None)
    except RowError as error:
        raise DataError(f"{file}: {error}.") from None


def hashed_split(key: str) -> Split:
    """80/10/10 by a hash of `key`, so that adding rows does not move old ones."""
    tenth = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
    return "test" if tenth == 9 else "validation" if tenth == 8 else "train"


def note_hashed(notes: ReadingNotes, path: Path, counts: Mapping[Split, int]) -> None:
    """Note how many images of the data at `path` a hash put into each split, if it did."""
    if any(counts.values()):
        listed = ", ".join(f"{counts.get(split, 0)} {split}" for split in SPLITS)
        notes.assumed(
            f"{path.name} names no splits, so its images were split 80/10/10 by a hash of their group or name: {listed}."
        )
