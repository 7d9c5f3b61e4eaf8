"""Read the files of a folder from elsewhere: regular files inside it only, sizes before contents, JSON strictly."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medgraft.errors import AdapterError

_JSON_BYTES = 8 << 20
_DEPTH, _MAX_KEY, _MAX_VALUES = 32, 500, 500_000  # of JSON; ours is 5 deep
_PIECE = 1 << 20


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system reports about `path` into an AdapterError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a null byte in a name, RuntimeError: a loop of links
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise AdapterError(f"{path} cannot be read: {reason}.") from error


def regular_file(folder: Path, name: str) -> Path | None:
    """The path of the file `name` in `folder`, None if there is none.

    AdapterError if it is no regular file (a device, a pipe, a folder) or a link that leads out of the folder. A link into the
    `blobs` of a snapshot in the hub's cache is as good as a file.
    """
    path = folder / name
    with reading(path):
        if not os.path.lexists(path):
            return None
        if path.is_symlink():
            target, inside = path.resolve(strict=True), [folder.resolve()]
            inside += [inside[0].parent.parent / "blobs"] if inside[0].parent.name == "snapshots" else []
            if target.parent not in inside:
                raise AdapterError(f"{path} is a link out of the folder, to {target}. Put the file itself there.")
        if not stat.S_ISREG(path.stat().st_mode):
            raise AdapterError(f"{path} is no regular file. Put the adapter's own file there.")
    return path


def file_size(path: Path) -> int:
    """The size in bytes."""
    with reading(path):
        return path.stat().st_size


def file_digest(path: Path) -> str:
    """Hex SHA-256, read in pieces."""
    whole = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while piece := file.read(_PIECE):
            whole.update(piece)
    return whole.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, as `strict_json` reads it."""
    size = file_size(path)
    if size > _JSON_BYTES:
        raise AdapterError(f"{path} has {size:,} bytes; at most {_JSON_BYTES:,} are read.")
    with reading(path):
        content = path.read_bytes()
    return strict_json(content, str(path))


def strict_json(content: bytes, what: str) -> dict[str, Any]:
    """The object in `content`; AdapterError, about `what`, unless it is one, in UTF-8, of finite numbers and distinct keys."""
    if sum(map(content.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise AdapterError(f"{what} has over {_MAX_VALUES:,} values.")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_number)
        _check_values(value, _DEPTH)
    except UnicodeDecodeError as error:
        raise AdapterError(f"{what} is not UTF-8 text: byte {error.start} is wrong. Copy it again.") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise AdapterError(f"{what} is not valid JSON: {reason}. Copy it again.") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{what} must be a JSON object, and is a {type(value).__name__}.")
    return value


def shown(name: object) -> str:
    """`name`, a text from elsewhere, short enough for a message."""
    text = repr(name)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text):,} characters)"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(key)} occurs twice")
    return found


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _check_values(value: Any, depth: int) -> None:
    if depth < 0:
        raise RecursionError
    match value:
        case float() if not math.isfinite(value):
            raise ValueError("a number is too large")
        case int() if value.bit_length() > 64:
            raise ValueError("a number is too large")
        case str():
            value.encode("utf-8")  # raises UnicodeEncodeError, a ValueError, for half a character
        case dict():
            for key, item in value.items():
                if len(key) > _MAX_KEY:
                    raise ValueError(f"a key has {len(key):,} characters")
                _check_values(key, depth)
                _check_values(item, depth - 1)
        case list():
            for item in value:
                _check_values(item, depth - 1)
