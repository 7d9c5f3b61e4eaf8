"""Replace a folder whole or not at all: a process killed at any moment leaves the old content or the new.

The new content is written beside the folder, flushed to the disk, and takes its place. Linux exchanges the two in one step, so
readers always find a folder. Elsewhere the old one is renamed first: for a moment there is no folder, and if the process dies
in that moment, `standing` still finds the old one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from medgraft.disk import flush, follow_umask

_NEW, _OLD = "medgraft-new-", "medgraft-old-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)


@contextmanager
def replacing(folder: Path, ours: Collection[str]) -> Iterator[Path]:
    """A new folder that takes the place of `folder` at the end of the block, unless the block raises.

    New files follow the umask. Files of the old folder whose names are not among `ours` are taken over. What a killed process
    left is removed, so of two processes that replace one folder at once, one fails.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    _clean_up(folder)
    new = folder.with_name(_prefix(folder, _NEW) + uuid4().hex)
    new.mkdir()
    try:
        yield new
        follow_umask(new)
        for path in new.rglob("*"):
            flush(path)
        if folder.is_dir():
            _take_over(folder, new, ours)
        flush(new)
        _put_in_place(new, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def standing(folder: Path) -> Path:
    """`folder`, or the old one if a process died while it replaced it."""
    return folder if os.path.exists(folder) else next(_left(folder, _OLD), folder)  # noqa: PTH110 - Path raises for long names


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # the second where the system knows no follow_symlinks, as Windows
        shutil.copy2(source, target, follow_symlinks=False)


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there is at `new` then, or removed."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        aside = new.with_name(new.name.replace(_NEW, _OLD))
        folder.rename(aside)
        new.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False if the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def _clean_up(folder: Path) -> None:
    """Remove what a killed process left, and put back the old folder if it was left aside."""
    if standing(folder) != folder:
        standing(folder).rename(folder)
    for left in (*_left(folder, _NEW), *_left(folder, _OLD)):
        shutil.rmtree(left, ignore_errors=True)


def _left(folder: Path, kind: str) -> Iterator[Path]:
    others = folder.parent.iterdir() if os.path.isdir(folder.parent) else ()  # noqa: PTH112 - the same
    return (path for path in others if path.name.startswith(_prefix(folder, kind)))


def _prefix(folder: Path, kind: str) -> str:
    return f".{folder.name}.{kind}"


def _take_over(old: Path, new: Path, ours: Collection[str]) -> None:
    for path in old.iterdir():
        target = new / path.name
        if path.name in ours or target.exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True, copy_function=link_or_copy)
        else:
            link_or_copy(path, target)
