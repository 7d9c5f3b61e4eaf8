"""Images inside files of several, such as tar archives and parquet files."""

from __future__ import annotations

from medgraft.errors import DataError
from medgraft.types import ImagePart


def member_bytes(part: ImagePart) -> bytes:
    """The bytes of the image file that is the member of `part.path`. DataError if there is none."""
    raise DataError(f"{part}: images inside such a file cannot be read.")
