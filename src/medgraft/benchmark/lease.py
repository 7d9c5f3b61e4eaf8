"""Leases: which process does a run, so that harnesses on one results folder, on one or several machines, do each run once.

A lease is a file `RUN_ID.N.lease` beside the run's record, made with O_EXCL, which network file systems support as well. It
names its owner and is touched every few seconds. Of several the highest N counts: whoever finds its owner dead makes N + 1,
which only one can. A process on the same machine is dead when it is gone; one elsewhere when the file was not touched for
two minutes by the finder's clock, so that clocks need not agree. Files of dead owners stay until the run has its record.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

_logger = logging.getLogger(__name__)

ALL = "all"  # in place of a run's id, for the lease of a whole folder
_SUFFIX = ".lease"
_POLL_SECONDS = 1.0


class LeaseLost(Exception):  # noqa: N818 - it is no error of the user
    """Another harness took this lease over, as this one was suspended or cut off for minutes."""


@dataclass(frozen=True)
class Owner:
    """The process that has a lease; `machine` tells process ids of two machines, or containers, apart."""

    host: str
    machine: str
    pid: int
    started: float  # seconds since the epoch

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def this(cls) -> Owner:
        """The calling process."""
        return cls(platform.node(), _machine(), os.getpid(), psutil.Process().create_time())


@dataclass
class Leases:
    """The leases of runs whose records are in `folder`; `beside` are the folders of the same suite, this one included."""

    folder: Path
    beside: tuple[Path, ...] = ()
    beat_seconds: float = 10.0
    dead_seconds: float = 120.0
    _seen: dict[Path, tuple[int, float]] = field(default_factory=dict)  # when a file was last touched, and first seen so

    def take(self, run_id: str) -> Lease | Owner:
        """The lease of a run, to be used in a `with` block, or who has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = self.folder / f"{run_id}.{number}{_SUFFIX}"
            try:
                _make(path)
            except FileExistsError:
                try:
                    owner = self._living(path)
                except FileNotFoundError:  # given back just now
                    continue
                if owner is not None:
                    return owner
                number += 1
                continue
            return self._made(path)

    def _made(self, path: Path) -> Lease | Owner:
        """The lease of the new file `path`, or who has it: the run of a dead harness may have begun just now."""
        former = _numbered(path, -1)
        owner = self._living(former) if former.is_file() else None
        if owner is not None:
            path.unlink()
            return owner
        if former.is_file():
            _logger.info("  taken over from %s, which is gone", _read(former)[0] or "a process")
        for torn in self.folder.glob(f".{_run_id(path)}.json.*.tmp"):  # of a record that a dead process was writing
            torn.unlink(missing_ok=True)
        return Lease(path, self.beat_seconds)

    @contextmanager
    def wait(self, run_id: str, tell: Callable[[Owner], None]) -> Iterator[Lease]:
        """The lease of `run_id`, once nobody else has it; `tell` is called if somebody has."""
        last = None
        while isinstance(taken := self.take(run_id), Owner):
            if taken != last:
                tell(taken)
            last = taken
            time.sleep(_POLL_SECONDS)
        with taken as lease:
            yield lease

    def clear(self, run_id: str) -> None:
        """Remove what dead harnesses left of a run that has its record."""
        if (self.folder / f"{run_id}.1{_SUFFIX}").exists():
            taken = self.take(run_id)
            if isinstance(taken, Lease):
                taken.give_back()

    def _living(self, path: Path) -> Owner | None:
        """The owner of a lease unless it is dead; FileNotFoundError if there is no such lease."""
        touched = path.stat().st_mtime_ns
        owner, notes = _read(path)
        known = owner is not None and owner.machine == _machine()
        if owner is not None and known:
            processes = [(owner.pid, owner.started), *((note["run"], note["started"]) for note in notes if "run" in note)]
            states = [_runs(pid, started) for pid, started in processes]
            if True in states:
                return owner
            if not any(state is None for state in states):
                return None
        last, since = self._seen.get(path, (None, 0.0))
        if last != touched:
            self._seen[path] = touched, time.monotonic()
        elif time.monotonic() - since > self.dead_seconds:
            return None
        return owner or Owner("an unknown machine", "", 0, 0.0)

    def begin(self, path: Path) -> None:
        """Note in this lease, and in those of other harnesses on this machine, that their runs disturb each other's times."""
        for other in itertools.chain.from_iterable(folder.glob(f"*{_SUFFIX}") for folder in self.beside):
            owner = _read(other)[0]
            if (
                owner is not None
                and _run_id(other) != ALL
                and owner.machine == _machine()
                and owner.pid != os.getpid()
                and _runs(owner.pid, owner.started)
            ):
                note(other, beside=True)
                note(path, beside=True)


class Lease:
    """A lease of this process: touched in a thread inside a `with` block, and given back at its end."""

    def __init__(self, path: Path, beat_seconds: float):
        self.path = path
        self.finished = False
        self._beat_seconds = beat_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="medgraft lease")

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self.give_back()

    def give_back(self) -> None:
        """Remove the file, and if the run has its record, or is `finished`, also those of earlier owners."""
        if not is_held(self.path):
            return
        run_id = _run_id(self.path)
        if self.finished or (self.path.parent / f"{run_id}.json").is_file():
            for path in self.path.parent.glob(f"{run_id}.*{_SUFFIX}"):
                path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(self._beat_seconds):
            try:
                if is_held(self.path):
                    os.utime(self.path)
            except OSError:  # a network that is away; the next beat may succeed
                _logger.debug("%s could not be touched", self.path, exc_info=True)


def is_held(path: Path) -> bool:
    """Whether the lease in `path` still counts: nobody took it over or removed it."""
    return path.is_file() and not _numbered(path, 1).exists()


def is_disturbed(path: Path) -> bool:
    """Whether another harness did a run on this machine while the lease in `path` was held."""
    return any("beside" in noted for noted in _read(path)[1])


def begin_run(path: Path) -> None:
    """Note in a lease that the calling process does the run; LeaseLost if another harness took the lease over."""
    this = Owner.this()
    note(path, run=this.pid, started=this.started)
    if not is_held(path):
        raise LeaseLost


def note(path: Path, **values: Any) -> None:
    """Append a line to a lease, unless it is gone."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:
        return
    try:
        os.write(file, (json.dumps(values) + "\n").encode())
    finally:
        os.close(file)


def _make(path: Path) -> None:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        os.write(file, (json.dumps(Owner.this().__dict__) + "\n").encode())
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(file)


def _read(path: Path) -> tuple[Owner | None, list[dict[str, Any]]]:
    """Owner and notes; no owner if the file is being written, or gone."""
    try:
        first, *notes = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return Owner(**first), notes
    except (OSError, ValueError, TypeError):
        return None, []


def _run_id(path: Path) -> str:
    return path.name.removesuffix(_SUFFIX).rpartition(".")[0]


def _numbered(path: Path, more: int) -> Path:
    """The lease of the same run whose number is higher by `more`."""
    run_id, _, number = path.name.removesuffix(_SUFFIX).rpartition(".")
    return path.with_name(f"{run_id}.{int(number) + more}{_SUFFIX}")


def _runs(pid: int, started: float) -> bool | None:
    """Whether a process of this machine is there; None if unsure: it may be this one, or a later one with its number."""
    if pid == os.getpid():
        return None
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return True if abs(process.create_time() - started) < 1 else None
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return None


@functools.cache
def _machine() -> str:
    """What process ids count in: the host, since its last start, and the container."""
    parts = [platform.node()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        try:
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text().strip())
        except OSError:  # not on Linux
            continue
    return " ".join(parts)
