"""Images inside larger files, such as tar archives and Arrow tables: where their bytes lie, and reading them by that."""

from __future__ import annotations

import re
from pathlib import Path

from medgraft.errors import DataError
from medgraft.types import ImagePart

_MEMBER = re.compile(r"(?s)(?P<name>.*) @(?P<offset>\d+)\+(?P<size>\d+)")


def member_at(path: Path, name: str, offset: int, size: int) -> ImagePart:
    """The encoded image in the `size` bytes from `offset` of the file `path`; messages show `name`."""
    return ImagePart(path, f"{name} @{offset}+{size}")


def member_bytes(part: ImagePart) -> bytes:
    """The encoded image of a part that has a member; the rest of the file is not read. OSError if the file cannot be read."""
    found = _MEMBER.fullmatch(part.member or "")
    if found is None:
        raise DataError(f"{part}: the member has to end in @OFFSET+SIZE, as medgraft.data.members.member_at makes it.")
    offset, size = int(found["offset"]), int(found["size"])
    with part.path.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise OSError(f"the file ends before byte {offset + size}; it is not the one that was read before")
    return content
