"""Work whose runs are done by an executor's workers: each does one run as a harness of its own, on the same results folder."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medgraft.benchmark.dry_run import memory_needed
from medgraft.benchmark.lease import Lease
from medgraft.benchmark.process import OUTPUT, start_server
from medgraft.benchmark.record import Record, write_record
from medgraft.benchmark.recording import failed_record
from medgraft.benchmark.timing import TIMING
from medgraft.benchmark.work import Stamp, Task, Work
from medgraft.errors import ConfigError, MedgraftError, OutputError, first_line
from medgraft.executor_config import ExecutorConfig
from medgraft.executors import Executor, Needs, Submission, open_executor
from medgraft.features import store_folder
from medgraft.plugin import PluginManager
from medgraft.progress import log_to_stderr

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_STOPPING_SECONDS = 150.0  # a run that saves a checkpoint has 120


@contextlib.contextmanager
def open_work(settings: ExecutorConfig, out: Path, plugins: PluginManager, *, retry_failed: bool) -> Iterator[Work]:
    """The work of a suite on the results folder `out`, done by this process or by workers; ConfigError if there are none."""
    if settings.name == "local":
        if (settings.workers or 1) > 1:
            raise ConfigError(
                f"executor.workers={settings.workers}: the executor local does one run at a time. "
                "Use --executor submitit with executor.cluster=local, or --executor ray."
            )
        start_server()
        yield Work(out, plugins, retry_failed)
        return
    executor = open_executor(settings, out.resolve() / settings.name)
    mark = store_folder() / f".shared-{uuid.uuid4().hex}"
    try:
        with contextlib.suppress(OSError):  # then no worker sees it
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        _logger.info("executor: %s", executor)
        yield SentWork(out, plugins, retry_failed, executor=executor, settings=settings, mark=mark)
    finally:
        mark.unlink(missing_ok=True)
        executor.close()


@dataclass(frozen=True)
class Report:
    """What a worker says of a run that it did; `error` is a mistake that every run would meet."""

    host: str
    features: Path
    shares_features: bool
    error: str | None = None


@dataclass(frozen=True)
class Call:
    """One run for a worker: `folder`, `suite` and `mark` are absolute paths, `output` begins with the words `sent`."""

    task: Task
    suite: Path
    part: str
    retry_failed: bool
    before: Stamp | None
    folder: Path
    environ: dict[str, str]
    log_level: int
    sent: str
    mark: Path

    def __call__(self) -> Report:
        """Do the run, unless it has its record or another harness does it. Its output goes to its folder."""
        os.environ.update(self.environ)
        host, error = f"process {os.getpid()} on {platform.node()}", None
        work = Work(self.suite, PluginManager.from_environment(), self.retry_failed, self.part, keep_output=True)
        output = work.out / self.task.run.folder / OUTPUT
        try:
            if not output.is_file() or self.sent not in output.read_text(encoding="utf-8", errors="replace"):
                raise OutputError(
                    f"{host} does not see the results in {self.suite}. Name a folder on a file system that all machines share."
                )
            with contextlib.chdir(self.folder if self.folder.is_dir() else "."), log_to_stderr(self.log_level):
                work.do_all([self.task], {self.task.run.run_id: self.before})
        except MedgraftError as problem:
            error = str(problem)
        return Report(host, store_folder(), self.mark.is_file(), error)


@dataclass(frozen=True)
class SentWork(Work):
    """Work that workers do."""

    executor: Executor = field(kw_only=True)
    settings: ExecutorConfig = field(kw_only=True)
    mark: Path = field(kw_only=True)  # a file in the feature store, by which a worker sees that it is the same
    _logged: set[str] = field(default_factory=set, kw_only=True)

    def do_all(self, tasks: Sequence[Task], before: dict[str, Stamp | None] | None = None) -> list[Record]:
        """The record of each task. A run whose worker is lost is begun again; after `attempts` times its record says so."""
        before = before or self.stamps(tasks)
        done: dict[int, Record] = {}
        attempts: Counter[int] = Counter()
        running: dict[int, Submission] = {}
        waiting = []
        for index, task in enumerate(tasks):
            if (record := self.known(task, before)) is not None:
                done[index] = record
            else:
                waiting.append(index)
        try:
            while waiting or running:
                while waiting and len(running) < self._most():
                    index = waiting.pop(0)
                    attempts[index] += 1
                    running[index] = self._submit(tasks[index], before, attempts[index])
                for index in [index for index, sent in running.items() if sent.done()]:
                    record = self._ended(
                        tasks[index], running.pop(index), before, last=attempts[index] >= self.settings.attempts
                    )
                    if record is None:
                        waiting.append(index)
                    else:
                        done[index] = record
                time.sleep(_POLL_SECONDS if running else 0)
        except BaseException:
            _stop(running.values())
            raise
        for task in tasks:
            self.leases().clear(task.run.run_id)
        return [done[index] for index in range(len(tasks))]

    def _most(self) -> float:
        """How many runs may be going on."""
        if self.part == TIMING:  # they would disturb each other
            return 1
        return self.settings.workers or self.executor.workers or float("inf")

    def _submit(self, task: Task, before: dict[str, Stamp | None], number: int) -> Submission:
        needs, out = self._needs(task), self.out.resolve()
        sent = f"{task}, try {number}, by {self.executor}: {uuid.uuid4().hex}"
        output = out / task.run.folder / OUTPUT
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a" if number > 1 else "w", encoding="utf-8") as file:
            file.write(sent + "\n")
        environ = {name: value for name, value in os.environ.items() if name.startswith("MEDGRAFT_")}
        environ |= {name: os.environ[name] for name in ("HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT") if name in os.environ}
        level = logging.getLogger("medgraft").getEffectiveLevel()
        call = Call(
            task, self.suite.resolve(), self.part, self.retry_failed, before[task.run.run_id], Path.cwd(), environ, level, sent,
            self.mark.absolute(),
        )  # fmt: skip
        gpus = f", {needs.gpus:g} GPU" if needs.gpus else ""
        _logger.info("%s: sent, for %d cores, %.1f GB%s", task, needs.cpus, needs.memory_bytes / 1e9, gpus)
        return self.executor.submit(call, needs)

    def _needs(self, task: Task) -> Needs:
        own = self.settings
        gpus = float(self.executor.has_gpus) if own.gpus == "auto" else own.gpus
        found = (
            memory_needed(task.run.config, gpus=gpus > 0, plugins=self.plugins)
            if own.memory_gb == "auto"
            else own.memory_gb * 1e9
        )
        return Needs(gpus, own.cpus, int(found))

    def _ended(self, task: Task, sent: Submission, before: dict[str, Stamp | None], *, last: bool) -> Record | None:
        """The record of a task whose call has ended; None if it has none yet, as the worker is lost."""
        try:
            report: Report = sent.result()
        except Exception as error:  # engines and their libraries raise many kinds
            lost: Exception | None = error
            host = None
        else:
            lost, host = None, report.host
            if report.error:
                raise OutputError(report.error)
            self._tell(report)
        if (record := self.known(task, before, host)) is not None:
            if record.status == "failed":
                _logger.info("  failed: %s", record.error)
            return record
        lost = lost or OutputError("it left no record")
        with contextlib.suppress(OSError), (self.out / task.run.folder / OUTPUT).open("a", encoding="utf-8") as file:
            file.write(f"{lost}\n")
        _logger.warning("%s: its worker is lost (%s)%s", task, first_line(lost), "" if last else "; it is begun again")
        return self._give_up(task, lost) if last else None

    def _give_up(self, task: Task, lost: BaseException) -> Record | None:
        taken = self.leases().take(task.run.run_id)
        if not isinstance(taken, Lease):  # its process goes on, although the engine lost sight of it
            return None
        with taken:
            record = failed_record(task.run.config, f"its worker was lost {self.settings.attempts} times: {first_line(lost)}")
            named = {"run_id": task.run.run_id, "adapter": task.run.folder, "tuning": task.tuning}
            record = record.model_copy(update=named)
            write_record(record, self.records)
        return record

    def _tell(self, report: Report) -> None:
        """Log once for each machine which feature store it uses."""
        machine = report.host.rpartition(" ")[2]
        if machine not in self._logged:
            self._logged.add(machine)
            what = "uses the same feature store" if report.shares_features else "builds a feature store of its own"
            _logger.info("%s %s: %s", machine, what, report.features)


def _stop(running: Collection[Submission]) -> None:
    """Stop what is running, and wait until it has saved its checkpoints."""
    if not running:
        return
    _logger.info("  stopping the workers; a second Ctrl-C does not wait for them")
    deadline = time.monotonic() + _STOPPING_SECONDS
    for sent in running:
        sent.cancel()
    with contextlib.suppress(Exception):  # of an engine that is gone
        while not all(sent.done() for sent in running) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
