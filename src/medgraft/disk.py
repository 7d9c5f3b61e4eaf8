"""What writing files has to mind: data that reach the disk, modes that follow the umask, and a disk that is full."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from uuid import uuid4

_DISK = {
    errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "a file may not become so large",
    errno.EROFS: "the file system is read-only", errno.EACCES: "permission denied", errno.EPERM: "permission denied",
}  # fmt: skip
_NO_MEMORY = ("OutOfMemoryError", "MemoryError")


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():  # which Windows cannot open
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in place of what is there; readers find the old text or the new, and nothing else is left."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def follow_umask(folder: Path) -> None:
    """Give the files of a folder that was just made the mode of any new file, where safetensors gives 0600.

    A file with another name elsewhere keeps its mode.
    """
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            path.chmod(mode)


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written to `folder`, or to the nearest folder above it that exists; None if something can."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return f"Nothing can be written to {place}: {lack(error) or error}."
    return None


def lack(error: BaseException) -> str | None:
    """The space, permission or memory that an error is about, in words; None for any other error."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return _DISK[error.errno]
    text = str(error)
    if "(os error 28)" in text or "No space left on device" in text:  # safetensors has no errno
        return _DISK[errno.ENOSPC]
    if any(kind.__name__ in _NO_MEMORY for kind in type(error).__mro__) or "can't allocate memory" in text:
        return "there is not enough memory; smaller batches or train.gradient_checkpointing need less"
    return None
