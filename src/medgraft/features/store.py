"""The feature store: features by the digest of their image, in safetensors shards that are written atomically.

A collection is a folder named after the digest of its key (see reusable_prefix.py), with the key in `collection.json` for
people. A shard contains a few dozen features by their images' digests, and their checksums in its metadata. Any number of
processes may read and write a collection: a shard gets its name only when complete, and an image may be in several shards.
Damaged shards are detected when opened or first read, and renamed; their features are computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import time
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medgraft.disk import lack, write_whole
from medgraft.features.reusable_prefix import key_digest
from medgraft.file_index import cache_folder

_COLLECTION = re.compile(r"[0-9a-f]{32}")  # names of the store's folders; all others are left alone
_SHARD, _DAMAGED, _ABOUT = ".safetensors", ".damaged", "collection.json"
_SHARD_BYTES = 64 << 20
_SPARE_BYTES = 1 << 30  # disk space to leave free
_UNFINISHED_SECONDS = 3600  # after which nobody is still writing a shard


@dataclass(frozen=True)
class CollectionInfo:
    """One collection on disk."""

    folder: Path
    key: Mapping[str, Any]
    features: int
    bytes: int
    used: float  # seconds since the epoch


def store_folder() -> Path:
    """The folder of all collections: MEDGRAFT_FEATURES, or `features` in medgraft's cache."""
    own = os.environ.get("MEDGRAFT_FEATURES")
    return Path(own) if own else cache_folder() / "features"


class FeatureStore:
    """One collection, opened for reading and writing.

    `max_bytes` limits the size of the whole store on disk; features beyond it are dropped. After a failed write `problem`
    holds the reason, and nothing more is written.
    """

    def __init__(self, key: dict[str, Any], *, max_bytes: int, root: Path | None = None):
        self.key = key
        self.root = root or store_folder()
        self.folder = self.root / key_digest(key)
        self.problem: str | None = None
        self.written = 0  # features that this object has written
        self._max_bytes = max_bytes
        self._where: dict[str, Path] = {}  # digest -> shard
        self._files: dict[Path, Any] = {}  # open shards
        self._sums: dict[Path, dict[str, int]] = {}  # of features not checked yet
        self._pending: dict[str, torch.Tensor] = {}
        self._known: set[Path] = set()
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """State without the open files; a worker process opens its own."""
        return {**self.__dict__, "_files": {}}

    def __contains__(self, digest: str) -> bool:
        return digest in self._where or digest in self._pending

    def refresh(self) -> None:
        """Look for shards that other processes have written."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob(f"*{_SHARD}")):
            if path not in self._known:
                self._known.add(path)
                self._open(path)

    def mark_used(self) -> None:
        """Set the time of last use, which `prune` reads."""
        with contextlib.suppress(OSError):
            os.utime(self.folder)

    def get(self, digest: str) -> torch.Tensor | None:
        """The feature [S, C] of an image; None if it is not stored or damaged."""
        if digest in self._pending:
            return self._pending[digest]
        shard = self._where.get(digest)
        if shard is None:
            return None
        try:
            if shard not in self._files:
                self._files[shard] = safe_open(shard, framework="pt")
            feature: torch.Tensor = self._files[shard].get_tensor(digest)
        except OSError:  # a disk error, which does not mean that the shard is damaged
            return None
        except SafetensorError:
            self._set_aside(shard)
            return None
        if digest in self._sums[shard]:
            if _checksum(feature) != self._sums[shard][digest]:
                self._set_aside(shard)
                return None
            del self._sums[shard][digest]
        return feature

    def put(self, features: Mapping[str, torch.Tensor]) -> None:
        """Add features, which must not change afterwards; they are written when they fill a shard, or by `flush`."""
        if self.problem is not None:
            return
        for digest, feature in features.items():
            if digest not in self:
                self._pending[digest] = feature.detach().to("cpu").contiguous()
        if sum(feature.nbytes for feature in self._pending.values()) >= _SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all pending features as one shard."""
        if not self._pending or self.problem is not None:
            return
        size = sum(feature.nbytes for feature in self._pending.values())
        self.problem = self._refusal(size)
        if self.problem is None:
            try:
                self._write()
            except (OSError, SafetensorError) as error:
                self.problem = f"Features cannot be written to {self.folder}: {lack(error) or error}."
        if self.problem is not None:
            self._pending.clear()

    def _refusal(self, size: int) -> str | None:
        if sum(_bytes_below(folder) for folder in _collections_in(self.root)) + size > self._max_bytes:
            limit = self._max_bytes / 1e9
            return (
                f"The feature store in {self.root} has reached features.max_gb={limit:g}; others are computed at each use. "
                "Raise it, or make room with `medgraft features prune`."
            )
        if self._disk_free() < size + _SPARE_BYTES:
            return f"The disk of {self.root} is nearly full; features are computed at each use."
        return None

    def _disk_free(self) -> int:
        place = next(path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(place).free

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        about = self.folder / _ABOUT
        if not about.exists():
            write_whole(about, json.dumps(self.key, indent=1))
        sums = {digest: str(_checksum(feature)) for digest, feature in self._pending.items()}
        final = self.folder / f"{uuid.uuid4().hex}{_SHARD}"
        temporary = final.with_suffix(".tmp")
        try:
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)  # by the umask; safetensors gives 0600
            save_file(self._pending, temporary, metadata=sums)
            temporary.chmod(mode)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
        self.written += len(self._pending)
        self._known.add(final)
        self._open(final)
        self._sums[final] = {}
        self._pending.clear()

    def _remove_unfinished(self) -> None:
        """Remove what killed processes left."""
        for path in self.folder.glob("*.tmp"):
            with contextlib.suppress(OSError):  # another process finished it just now
                if time.time() - path.stat().st_mtime > _UNFINISHED_SECONDS:
                    path.unlink()

    def _open(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            sums = {digest: int(value) for digest, value in (file.metadata() or {}).items()}
            if sums.keys() != set(file.keys()):
                raise ValueError("every feature has a checksum")
        except OSError:
            return
        except (SafetensorError, ValueError):
            self._set_aside(path)
            return
        self._files[path], self._sums[path] = file, sums
        for digest in sums:  # the same text objects, of which there are many
            self._where[digest] = path

    def _set_aside(self, path: Path) -> None:
        """Forget a damaged shard and rename it, so that no process reads it again."""
        self._files.pop(path, None)
        self._where = {digest: shard for digest, shard in self._where.items() if shard != path}
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(_DAMAGED))


def collections(root: Path | None = None) -> tuple[CollectionInfo, ...]:
    """All collections of the store, most recently used first."""
    place = root or store_folder()
    found = []
    for folder in _collections_in(place):
        try:
            key = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            key = {}
        count = sum(_count(path) for path in folder.glob(f"*{_SHARD}"))
        found.append(CollectionInfo(folder, key, count, _bytes_below(folder), folder.stat().st_mtime))
    return tuple(sorted(found, key=lambda info: -info.used))


def prune(
    *, older_than_days: float | None = None, max_bytes: int | None = None, root: Path | None = None
) -> tuple[CollectionInfo, ...]:
    """Delete collections unused for `older_than_days`, then the least recently used above `max_bytes`; returns the deleted."""
    limit = float("inf") if older_than_days is None else older_than_days * 86400
    listed, now = collections(root), time.time()
    deleted = [info for info in listed if now - info.used >= limit]
    remaining = [info for info in listed if info not in deleted]
    while max_bytes is not None and remaining and sum(info.bytes for info in remaining) > max_bytes:
        deleted.append(remaining.pop())
    for info in deleted:
        shutil.rmtree(info.folder, ignore_errors=True)  # another process may be removing it too
    return tuple(deleted)


def _collections_in(root: Path) -> list[Path]:
    """The folders of collections in `root`, which may contain other things as well."""
    return [path for path in root.iterdir() if path.is_dir() and _COLLECTION.fullmatch(path.name)] if root.is_dir() else []


def verify(root: Path | None = None) -> tuple[tuple[Path, ...], int]:
    """Read every feature of the store; returns (damaged shards, which were renamed, number of sound features)."""
    damaged, sound = [], 0
    for info in collections(root):
        store = FeatureStore(dict(info.key), max_bytes=0, root=info.folder.parent)
        store.folder = info.folder  # the key does not give it if collection.json was lost
        store.refresh()
        for digest in list(store._where):
            sound += store.get(digest) is not None
        damaged += sorted(info.folder.glob(f"*{_DAMAGED}"))
    return tuple(damaged), sound


def _checksum(feature: torch.Tensor) -> int:
    return zlib.crc32(feature.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _count(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as file:
            return len(list(file.keys()))
    except (OSError, SafetensorError):
        return 0


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
