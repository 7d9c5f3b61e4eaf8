"""Whether a suite's results can be written: told before anything is loaded, and at once when the disk is full."""

from __future__ import annotations

import errno
import re
import time
from pathlib import Path

from medgraft import disk
from medgraft.errors import OutputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # the next run would end in the same way
_LEFT_OVER_SECONDS = 3600.0


def check_writable(out: Path) -> None:
    """Raise OutputError unless files can be made in the results folder `out`, or where it has to be made.

    Removes old temporary files that a killed harness left there.
    """
    records = out / "records"
    if problem := disk.unwritable(records):
        raise OutputError(f"{problem} Name another folder for the results with --out, or mend this one.")
    for path in (*records.glob("*.tmp"), *out.glob("*.tmp")):
        if time.time() - path.stat().st_mtime > _LEFT_OVER_SECONDS:  # another harness may be writing a younger one
            path.unlink(missing_ok=True)


def full_disk(error: BaseException | None) -> int | None:
    """The errno of a disk that is full or turned read-only, if that caused `error`; safetensors states it in its text."""
    while error is not None:
        stated = re.search(r"(?:code: |os error )(\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(stated[1]) if stated else None
        if number in FULL:
            return number
        error = error.__cause__ or error.__context__
    return None


def stopped_by(number: int, out: Path) -> OutputError:
    """What to tell when the errno `number` ends a suite."""
    return OutputError(f"Results cannot be written to {out}: {disk.lack(OSError(number, ''))}. What was finished is kept.")
