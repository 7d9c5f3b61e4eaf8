"""A file of captions that grows while they are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from medgraft.errors import ConfigError

_END = b"\n}\n"


class PredictionsFile:
    """Writes {id: caption} as JSON, which is complete after every `add`, so that whoever is stopped has what was made.

    An older file at `path` is replaced at the first `add`. ConfigError if `path` is a folder; the folder above it is made.
    """

    def __init__(self, path: Path):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file for the captions, such as {path / 'captions.json'}.")
        self._path = path
        self._file: BinaryIO | None = None
        self._end = 0  # where the next entry goes

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._path.parent} cannot be made for the captions: {error.strerror}.") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: str, captions: str | Sequence[str] | Mapping[str, str | Sequence[str]]) -> None:
        """Write one entry: a caption, several as a list, or those of several models by name."""
        if self._file is None:
            self._file = self._path.open("wb")
        entry = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(captions, ensure_ascii=False)}".encode()
        self._file.seek(self._end)
        self._file.write((b",\n" if self._end else b"{\n") + entry)
        self._end = self._file.tell()
        self._file.write(_END)
        self._file.flush()
