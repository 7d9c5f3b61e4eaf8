"""Does runs that have no record yet, and shares them with other harnesses on the same results folder."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medgraft.benchmark.lease import LeaseLost, Leases, Owner
from medgraft.benchmark.plan import PlannedRun
from medgraft.benchmark.process import Job, run_in_process
from medgraft.benchmark.record import Record, Tuning, read_record
from medgraft.benchmark.timing import TIMING
from medgraft.plugin import PluginManager

_logger = logging.getLogger(__name__)

TUNING = "tuning"  # the folder of trials in a suite's results
_POLL_SECONDS = 1.0
Stamp = tuple[int, int]


@dataclass(frozen=True)
class Task:
    """A run to do; `number` counts it for the terminal."""

    run: PlannedRun
    number: str
    tuning: Tuning | None = None
    evaluate: bool = True

    def __str__(self) -> str:
        config = self.run.config
        return f"{self.number} {config.backbone} {config.strategy} seed {config.seed}"


@dataclass(frozen=True)
class Work:
    """Where runs go, and whether those that failed before are tried again."""

    suite: Path
    plugins: PluginManager
    retry_failed: bool
    part: str = ""
    keep_output: bool = False  # append what runs print to a file in their folders, and keep it

    @property
    def out(self) -> Path:
        """The folder of runs and records."""
        return self.suite / self.part

    @property
    def records(self) -> Path:
        """The folder of their records."""
        return self.out / "records"

    def below(self, part: str) -> Work:
        """The same, with records and files in the subfolder `part`."""
        return replace(self, part=part)

    def leases(self) -> Leases:
        """The leases of these runs."""
        return Leases(self.records, tuple(self.suite / part / "records" for part in ("", TUNING, TIMING)))

    def stamps(self, tasks: Sequence[Task]) -> dict[str, Stamp | None]:
        """The present state of each task's record."""
        return {task.run.run_id: _stamp(self._path(task)) for task in tasks}

    def do_all(self, tasks: Sequence[Task], before: dict[str, Stamp | None] | None = None) -> list[Record]:
        """The record of each task: done before, done now, or done by another harness in the meantime.

        `before` has the state of the records at the suite's start, if that is not now: what failed since is not tried again.
        """
        leases = self.leases()
        before = before or self.stamps(tasks)
        done: dict[int, Record] = {}
        others: dict[int, str] = {}
        while len(done) < len(tasks):
            waits = True
            for index, task in enumerate(tasks):
                if index in done:
                    continue
                found = self.known(task, before, others.get(index)) or self._do(task, leases, before)
                if isinstance(found, Record):
                    done[index] = found
                    waits = False
                elif str(found) != others.get(index):
                    others[index] = str(found)
                    _logger.info("%s: left to %s, which does it", task, found)
            if waits:
                time.sleep(_POLL_SECONDS)
        for task in tasks:
            leases.clear(task.run.run_id)
        return [done[index] for index in range(len(tasks))]

    def _path(self, task: Task) -> Path:
        return self.records / f"{task.run.run_id}.json"

    def known(self, task: Task, before: dict[str, Stamp | None], other: str | None = None) -> Record | None:
        """The record that a run has, unless it is to be done again; `other` is who did it meanwhile."""
        path = self._path(task)
        stamp = _stamp(path)
        if stamp is None or _is_torn(path):
            return None
        record = read_record(path)
        if record.status == "failed" and self.retry_failed and stamp == before[task.run.run_id]:
            return None
        again = " (failed; --retry-failed tries again)" if record.status == "failed" else ""
        _logger.info("%s: done %s%s", task, f"by {other}" if other else "before", again)
        return record

    def _do(self, task: Task, leases: Leases, before: dict[str, Stamp | None]) -> Record | Owner:
        taken = leases.take(task.run.run_id)
        if isinstance(taken, Owner):
            return taken
        with taken as lease:
            if (known := self.known(task, before)) is not None:  # finished since the first look
                return known
            _logger.info("%s", task)
            leases.begin(lease.path)
            run = task.run
            job = Job(
                run.config, run.run_id, self.out.resolve(), run.folder, task.tuning, task.evaluate, lease.path.resolve(),
                self.keep_output,
            )  # fmt: skip
            try:
                record = run_in_process(job)
            except LeaseLost:
                _logger.warning("  stopped: another harness took this run over, as this one did not answer for minutes")
                return Owner("another machine", "", 0, 0.0)
        if record.status == "failed":
            _logger.info("  failed: %s", record.error)
            _logger.debug("%s", record.traceback)
        return record


def _stamp(path: Path) -> Stamp | None:
    """Tells one state of a file from later ones; None if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def _is_torn(path: Path) -> bool:
    """Whether a file is not even JSON: cut off when the machine lost power."""
    try:
        json.loads(path.read_bytes())
    except ValueError:
        _logger.warning("%s is damaged, so its run is done again", path)
        return True
    return False
