"""What was found in files that were read, so that they need not be read again: one SQLite file in the user's cache.

An entry counts only for as long as the file has the size, the times of change and the inode that it had when it was read. The
time that counts is `st_ctime_ns`, which no program can set; on Windows, where it is the time of creation, a file that is
changed and given its old size and mtime back goes unnoticed. Many processes may use one index. An index that is locked,
damaged or on a read-only disk costs time and nothing else: files are read as if it were empty, and a warning says so once.
`MEDGRAFT_FILE_INDEX=off` does without it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_NAME = "file-index-1.sqlite"  # the number is that of its tables
_TABLES = (
    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, content TEXT NOT NULL, "
    "checksum TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS pruned (at REAL NOT NULL)",
)
_BUSY_SECONDS = 20.0  # how long another process's write is waited for
_SETTLED_SECONDS = 2.0  # two writes within one tick of a file system's clock leave the same times
_PRUNE_SECONDS = 30 * 86400.0
_PATHS_A_QUERY = 500
_PATHS_A_THREAD = 500


def cache_folder() -> Path:
    """Where medgraft keeps what it can make again: MEDGRAFT_CACHE, or `medgraft` in the user's cache."""
    own = os.environ.get("MEDGRAFT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medgraft"


@dataclass(frozen=True)
class FileState:
    """What changes whenever a file does, and when it was looked at."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    seen_at: float = field(compare=False)  # seconds since the epoch

    @property
    def settled(self) -> bool:
        """Whether the file was last changed long enough before: another change would be seen by its time."""
        changed = self.mtime_ns if os.name == "nt" else self.ctime_ns
        return self.seen_at - changed / 1e9 >= _SETTLED_SECONDS

    def __str__(self) -> str:
        return f"{self.size} {self.mtime_ns} {self.ctime_ns} {self.inode}"


def file_state(path: Path) -> FileState | None:
    """The state of a file, or of the file that a link leads to; None if there is none."""
    seen_at = time.time()
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, seen_at)


class FileIndex:
    """The entries of one kind of content; `kind` names it and the version of what makes it, of which others are not found."""

    def __init__(self, kind: str, folder: Path | None = None):
        self.kind = kind
        self.file = (folder or cache_folder()) / _NAME

    def find(self, paths: Sequence[Path]) -> dict[Path, Any]:
        """What was entered for those of `paths` that have not changed since."""
        if not paths or _switched_off() or not self.file.exists():
            return {}
        keys = _keys(paths)
        rows: dict[bytes, tuple[str, str, str, str]] = {}
        try:
            with self._open() as connection:
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'files'").fetchone():
                    return {}  # another process has just made the file
                wanted = list(set(keys))
                for some in (wanted[i : i + _PATHS_A_QUERY] for i in range(0, len(wanted), _PATHS_A_QUERY)):
                    marks = ",".join("?" * len(some))
                    query = f"SELECT path, kind, state, content, checksum FROM files WHERE path IN ({marks})"
                    rows.update({row[0]: row[1:] for row in connection.execute(query, some)})
        except (OSError, sqlite3.Error) as error:
            self._warn(error)
            return {}
        listed = [(path, key) for path, key in zip(paths, keys, strict=True) if key in rows]
        found = {}
        for (path, key), state in zip(listed, _states([path for path, _ in listed]), strict=True):
            kind, entered, content, checksum = rows[key]
            if kind == self.kind and entered == str(state) and checksum == _checksum(key, kind, entered, content):
                found[path] = json.loads(content)
        return found

    def enter(self, found: Mapping[Path, tuple[FileState, Any]]) -> None:
        """Keep what was found in files, as JSON has it.

        The states are those from before the files were read: of a file that was changed meanwhile the entry is never found.
        Files changed so shortly before that another change could not be seen by its time are left out.
        """
        if _switched_off():
            return
        lasting = [path for path, (state, _) in found.items() if state.settled]
        if not lasting:
            return
        rows = []
        for path, key in zip(lasting, _keys(lasting), strict=True):
            state, content = str(found[path][0]), json.dumps(found[path][1])
            rows.append((key, self.kind, state, content, _checksum(key, self.kind, state, content)))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                connection.execute("BEGIN IMMEDIATE")
                for table in _TABLES:
                    connection.execute(table)
                connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
                _prune(connection)
                connection.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            self._warn(error)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for each use, since none may be taken into a fork or another thread.

        With SQLite's plain journal: its write-ahead log is not made for home folders that several machines share.
        """
        connection = sqlite3.connect(self.file, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()  # which rolls back what was not committed

    def _warn(self, error: Exception) -> None:
        _warn_once(
            f"The index of known files {self.file} cannot be used ({error}), so files are read again at every start. "
            "Delete it if it is damaged; MEDGRAFT_CACHE names another folder for it."
        )


def _prune(connection: sqlite3.Connection) -> None:
    """Once a month, forget files that are gone."""
    (last,) = connection.execute("SELECT max(at) FROM pruned").fetchone()
    now = time.time()
    if last is not None and now - last < _PRUNE_SECONDS:
        return
    listed = [key for (key,) in connection.execute("SELECT path FROM files")]
    gone = [(key,) for key in listed if not Path(os.fsdecode(key)).exists()]
    connection.executemany("DELETE FROM files WHERE path = ?", gone)
    connection.execute("DELETE FROM pruned")
    connection.execute("INSERT INTO pruned VALUES (?)", (now,))


def _keys(paths: Sequence[Path]) -> list[bytes]:
    """Absolute paths without links in their folders. The file itself may be one: its state is that of where it leads."""
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    return [os.fsencode(os.path.join(folders[path.parent], path.name)) for path in paths]  # noqa: PTH118 - for 80,000 of them


def _states(paths: Sequence[Path]) -> list[FileState | None]:
    """Of many files at once, since each takes a round trip on a network's disk."""
    if len(paths) <= _PATHS_A_THREAD:
        return [file_state(path) for path in paths]
    parts = [paths[i : i + _PATHS_A_THREAD] for i in range(0, len(paths), _PATHS_A_THREAD)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return [state for part in pool.map(lambda some: [file_state(path) for path in some], parts) for state in part]


def _checksum(key: bytes, *values: str) -> str:
    """Of a whole entry: one that a damaged file gives is not believed."""
    return hashlib.sha256(b"\0".join([key, *(value.encode() for value in values)])).hexdigest()[:16]


def _switched_off() -> bool:
    return os.environ.get("MEDGRAFT_FILE_INDEX", "").lower() in ("off", "0")


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning(text)
