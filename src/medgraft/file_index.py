"""An index of results computed from files, such as digests, so that unchanged files need not be read again.

It is one SQLite file in the user's cache. An entry is valid while the file has the size, mtime, ctime and inode that it had
when it was read. `st_ctime_ns` is the reliable one, as programs cannot set it; on Windows it is the creation time, so a changed
file whose old size and mtime were restored goes unnoticed. Many processes may use the index. If it is locked, damaged or on a
read-only disk, files are read as if it were empty, with one warning. `MEDGRAFT_FILE_INDEX=off` disables it.
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
from typing import Any, TypeVar

from medgraft.types import ImagePart, ImageSource

_log = logging.getLogger(__name__)

_NAME = "file-index-1.sqlite"  # the number is the version of the tables
_TABLES = (
    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, content TEXT NOT NULL, "
    "checksum TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS pruned (at REAL NOT NULL)",
)
_BUSY_SECONDS = 20.0  # how long to wait for another process's write
_SETTLED_SECONDS = 2.0  # two writes within one tick of a file system's clock get the same times
_PRUNE_SECONDS = 30 * 86400.0
_Source = TypeVar("_Source", Path, ImageSource)
_PATHS_A_QUERY = 500
_PATHS_A_THREAD = 500


def cache_folder() -> Path:
    """The folder for files that medgraft can recreate: MEDGRAFT_CACHE, or `medgraft` in the user's cache."""
    own = os.environ.get("MEDGRAFT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medgraft"


@dataclass(frozen=True)
class FileState:
    """The metadata that changes whenever a file does, and the time at which it was read."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    seen_at: float = field(compare=False)  # seconds since the epoch

    @property
    def settled(self) -> bool:
        """Whether the last change is old enough that another one would get a different time."""
        changed = self.mtime_ns if os.name == "nt" else self.ctime_ns
        return self.seen_at - changed / 1e9 >= _SETTLED_SECONDS

    def __str__(self) -> str:
        return f"{self.size} {self.mtime_ns} {self.ctime_ns} {self.inode}"


def file_state(source: ImageSource) -> FileState | None:
    """The state of a file, or of the one that contains an image, following links; None if it does not exist."""
    seen_at = time.time()
    try:
        found = _file(source).stat()
    except OSError:
        return None
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, seen_at)


class FileIndex:
    """The index entries of one kind. `kind` includes a version; entries of another kind or version are ignored."""

    def __init__(self, kind: str, folder: Path | None = None):
        self.kind = kind
        self.file = (folder or cache_folder()) / _NAME

    def find(self, paths: Sequence[_Source]) -> dict[_Source, Any]:
        """The entries of those of `paths`, files or parts of files, that have not changed since they were entered."""
        if not paths or switched_off() or not self.file.exists():
            return {}
        keys = _keys(paths)
        rows: dict[bytes, tuple[str, str, str, str]] = {}
        try:
            with self._open() as connection:
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'files'").fetchone():
                    return {}  # another process has just made the file
                wanted = list(set(keys))
                for chunk in (wanted[i : i + _PATHS_A_QUERY] for i in range(0, len(wanted), _PATHS_A_QUERY)):
                    marks = ",".join("?" * len(chunk))
                    query = f"SELECT path, kind, state, content, checksum FROM files WHERE path IN ({marks})"
                    rows.update({row[0]: row[1:] for row in connection.execute(query, chunk)})
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

    def enter(self, found: Mapping[_Source, tuple[FileState, Any]]) -> None:
        """Store JSON values computed from files or their parts, with the state of the file.

        Take each state before reading the file, so that the entry of a file changed meanwhile is never found. Files whose
        state is not `settled` are skipped.
        """
        if switched_off():
            return
        settled = [path for path, (state, _) in found.items() if state.settled]
        if not settled:
            return
        rows = []
        for path, key in zip(settled, _keys(settled), strict=True):
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
        """Open a connection for one use, as connections must not be shared across forks or threads.

        It uses SQLite's default journal, because the write-ahead log does not support network file systems.
        """
        connection = sqlite3.connect(self.file, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()  # rolls back uncommitted changes

    def _warn(self, error: Exception) -> None:
        _warn_once(
            f"The file index {self.file} cannot be used ({error}), so files are read again at every start. "
            "Delete it if it is damaged; MEDGRAFT_CACHE names another folder for it."
        )


def _prune(connection: sqlite3.Connection) -> None:
    """Once a month, delete the entries of files that no longer exist."""
    (last,) = connection.execute("SELECT max(at) FROM pruned").fetchone()
    now = time.time()
    if last is not None and now - last < _PRUNE_SECONDS:
        return
    listed = [key for (key,) in connection.execute("SELECT path FROM files")]
    exists = {path: Path(os.fsdecode(path)).exists() for path in {_path_of(key) for key in listed}}
    missing = [(key,) for key in listed if not exists[_path_of(key)]]
    connection.executemany("DELETE FROM files WHERE path = ?", missing)
    connection.execute("DELETE FROM pruned")
    connection.execute("INSERT INTO pruned VALUES (?)", (now,))


def _file(source: ImageSource) -> Path:
    return source.path if isinstance(source, ImagePart) else source


def _keys(sources: Sequence[ImageSource]) -> list[bytes]:
    """Absolute paths with links in the folders resolved, each followed by what identifies a part of the file.

    The file itself may be a link; its state is that of the target.
    """
    folders = {folder: os.path.realpath(folder) for folder in {_file(source).parent for source in sources}}
    return [
        os.fsencode(os.path.join(folders[_file(source).parent], _file(source).name)) + _part_key(source)  # noqa: PTH118 - many
        for source in sources
    ]


def _part_key(source: ImageSource) -> bytes:
    if not isinstance(source, ImagePart):
        return b""
    return b"\0" + json.dumps([source.member, source.frame, source.window]).encode()


def _path_of(key: bytes) -> bytes:
    return key.partition(b"\0")[0]


def _states(sources: Sequence[ImageSource]) -> list[FileState | None]:
    """The states of many files, in parallel since each takes a round trip on a network disk; one a file."""
    files = [_file(source) for source in sources]
    paths = list(dict.fromkeys(files))
    if len(paths) <= _PATHS_A_THREAD:
        states = {path: file_state(path) for path in paths}
    else:
        parts = [paths[i : i + _PATHS_A_THREAD] for i in range(0, len(paths), _PATHS_A_THREAD)]
        with ThreadPoolExecutor(max_workers=8) as pool:
            found = pool.map(lambda chunk: [file_state(path) for path in chunk], parts)
            states = dict(zip(paths, (state for part in found for state in part), strict=True))
    return [states[file] for file in files]


def _checksum(key: bytes, *values: str) -> str:
    """Checksum of a whole entry, which detects entries of a damaged index."""
    return hashlib.sha256(b"\0".join([key, *(value.encode() for value in values)])).hexdigest()[:16]


def switched_off() -> bool:
    """Whether MEDGRAFT_FILE_INDEX says that nothing computed from files is stored."""
    return os.environ.get("MEDGRAFT_FILE_INDEX", "").lower() in ("off", "0")


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning(text)
