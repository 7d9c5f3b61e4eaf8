"""Whether a suite's results can be written: told before anything is loaded, and in one line when the disk is full."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medgraft.errors import OutputError

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # whatever else is tried there fails in the same way
_LEFT_OVER_SECONDS = 3600.0


def check_writable(out: Path) -> None:
    """Raise OutputError unless files can be made in the results folder `out`, or where it has to be made.

    Removes the temporary files that a killed harness left among the records.
    """
    records = out / "records"
    nearest = next(path for path in (records, *records.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
        for path in records.glob("*.tmp"):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_SECONDS:  # others may be under way
                path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"Results cannot be written to {out}: {_reason(error)}. Name another folder with --out.") from None


@contextmanager
def told_in_one_line(out: Path) -> Iterator[None]:
    """Inside the block, a disk that is full or turned read-only raises OutputError."""
    try:
        yield
    except OSError as error:
        if unwritable(error) is None:
            raise
        raise stopped_by(_reason(error), out) from error


def unwritable(error: BaseException | None) -> int | None:
    """The errno of a full disk or of one that turned read-only, if that caused `error`; safetensors states it in its text."""
    while error is not None:
        stated = re.search(r"(?:code: |os error )(\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(stated[1]) if stated else None
        if number in _UNWRITABLE:
            return number
        error = error.__cause__ or error.__context__
    return None


def stopped_by(reason: str, out: Path) -> OutputError:
    """What to tell when the disk ends a suite."""
    return OutputError(f"{out} cannot be written any more: {reason}. Finished runs are kept; make room and start again.")


def _reason(error: OSError) -> str:
    return error.strerror or os.strerror(error.errno or 0)
