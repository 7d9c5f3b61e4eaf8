"""Finds the image file that a path in a table or JSON file refers to, however it is written."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from medgraft.data.notes import RowError
from medgraft.data.text import LONE_SURROGATE, bare_text, kind, shown, written_list

IMAGE_SUFFIXES = frozenset({".bmp", ".dcm", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_LONGEST = 4096  # letters of a path that systems know


def image_file(value: Any, folder: Path, root: Path | None) -> tuple[str, Path]:
    """The path that `value` writes, with `/` for the backslashes of Windows, and the file. RowError if it is no path.

    A relative path is looked for in `folder`, then in `root`. An absolute one that does not exist is looked for under `root`
    by its last parts, as many as possible. If nothing is found, the file is the missing one in `folder`.
    """
    name = _name(value)
    if "\\" in name and not (folder / name).exists():
        name = PureWindowsPath(name).as_posix()
    if name.startswith("file://"):
        path = folder / url2pathname(urlsplit(name).path)
    else:
        path = folder / (Path(name).expanduser() if name.startswith("~/") else name)
    if root is None or path.exists():
        return name, path
    written = PureWindowsPath(path if name.startswith("file://") else name)
    absolute = bool(written.root or written.drive)
    parts = written.parts[1:] if absolute else written.parts
    tails = (root.joinpath(*parts[start:]) for start in range(len(parts) if absolute else 1))
    return name, next((tail for tail in tails if tail.is_file()), path)


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(f"the image is {kind(value)}; it must be the path of one file")
    name = bare_text(value)
    if not name:
        raise RowError("no image is named")
    if isinstance(written_list(name), list):
        raise RowError(f"the image {shown(name)} is a list; write the path of one image in each row")
    if "\0" in name or LONE_SURROGATE.search(name):
        raise RowError(f"the image {shown(value)} has a character that no path can have")
    if name[:5].lower() == "data:" or len(name) > _LONGEST:
        raise RowError(
            f"the image {shown(name)} is an image as text, and no path; save the images as files and write their paths"
        )
    scheme = re.match(r"([a-z][a-z0-9+.-]+://)", name, re.IGNORECASE)
    if scheme and scheme[1] != "file://":
        raise RowError(f"the image {shown(name)} is a URL; download the images and write their paths")
    return name
