"""Runs each run in its own process, which isolates its peak memory and its crashes.

On Linux the process is forked from multiprocessing's fork server, elsewhere it is spawned. The server has already imported
what runs need, except with an accelerator: importing bitsandbytes initialises it, and its state does not survive a fork.
"""

from __future__ import annotations

import codecs
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch

from medgraft.benchmark.lease import LeaseLost, begin_run, is_disturbed, is_held
from medgraft.benchmark.record import Record, Tuning, read_record, write_record
from medgraft.benchmark.recording import failed_record
from medgraft.benchmark.results_folder import FULL, full_disk, stopped_by
from medgraft.benchmark.run import execute
from medgraft.config import RunConfig
from medgraft.environment import run_environment
from medgraft.errors import Stopped
from medgraft.plugin import PluginManager
from medgraft.progress import bars_are_shown, log_to_stderr, progress_bars
from medgraft.quiet import call_quietly
from medgraft.training import sigterm_raises

_logger = logging.getLogger(__name__)

PROCESS_NAME = "medgraft run"
_FORKS = sys.platform == "linux"  # elsewhere system libraries may start threads, which do not survive a fork
OUTPUT = "output.txt"
_POLL_SECONDS = 0.1
_CHECK_SECONDS = 5.0
_ENDING_SECONDS = 10.0
_SAVING_SECONDS = 120.0  # for a run that writes a checkpoint before it ends
_FULL_DISK = 64  # the exit code is an errno above it
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Job:
    """A run of a suite: its files go to `folder` in `out`, its record, named `run_id`, to `records` in `out`.

    It is done only while `lease` is held. What it prints goes to the file OUTPUT in its folder, which stays if it failed; with
    `keep_output` it is appended and always stays.
    """

    config: RunConfig
    run_id: str
    out: Path
    folder: str
    tuning: Tuning | None = None
    evaluate: bool = True
    lease: Path | None = None
    keep_output: bool = False

    @property
    def saves(self) -> bool:
        """Whether the run writes checkpoints."""
        return self.config.train.save_steps is not None or self.config.train.save_final_state is True

    def plugins(self) -> PluginManager:
        """The plugins, which the harness has named when it planned the run."""
        manager = PluginManager.from_environment()
        manager.named.update(plugin.distribution for plugin in manager.plugins())
        return manager

    @property
    def record_path(self) -> Path:
        """The path of the finished run's record."""
        return self.out / "records" / f"{self.run_id}.json"


@dataclass(frozen=True)
class _Caller:
    """Settings of the calling process that the run's process takes over."""

    working_directory: Path
    environ: Mapping[str, str]
    log_level: int
    bars: bool


def start_server() -> None:
    """Let the fork server import what runs need while the caller plans them."""
    if not _FORKS:
        return
    from multiprocessing import forkserver  # POSIX only

    forkserver.set_forkserver_preload([] if torch.accelerator.is_available() else ["medgraft.fork_server"])
    with _environ(run_environment()):
        forkserver.ensure_running()


def run_in_process(job: Job) -> Record:
    """Run `job` and copy its output to stderr as it comes; the record states why, if the run failed or its process died.

    An exception in this call, such as Ctrl-C, also ends the process, which first saves a checkpoint if it has some; a second
    one ends it at once. LeaseLost if another harness took the lease over, OutputError if the disk is full: there is no record.
    """
    start_server()
    job.record_path.unlink(missing_ok=True)
    output = job.out / job.folder / OUTPUT
    output.parent.mkdir(parents=True, exist_ok=True)
    if not job.keep_output:
        output.write_bytes(b"")
    begin = output.stat().st_size
    caller = _Caller(Path.cwd(), dict(os.environ), logging.getLogger("medgraft").getEffectiveLevel(), bars_are_shown())
    context: Any = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
    call = pickle.dumps((_do, (job, caller, output.resolve())))
    process: BaseProcess = context.Process(target=call_quietly, args=(call,), name=PROCESS_NAME)
    try:
        with _hidden_main():
            process.start()
        last_words = _pass_on(output, begin, process, job.lease)
    except BaseException:
        if job.saves:
            _logger.info("  stopping, with a checkpoint; a second Ctrl-C stops at once")
        _end(process, _SAVING_SECONDS if job.saves else _ENDING_SECONDS)
        raise
    _end(process, 0)
    code = process.exitcode or 0
    process.close()
    if job.lease is not None and not is_held(job.lease):
        raise LeaseLost
    if code - _FULL_DISK in FULL:
        raise stopped_by(code - _FULL_DISK, job.out)
    if not job.record_path.is_file():
        record = failed_record(job.config, f"{_how_it_ended(code)}: {last_words or 'no output'}")
        write_record(_for_suite(record, job), job.record_path.parent)
    record = read_record(job.record_path)
    if record.status == "ok" and not job.keep_output:
        output.unlink(missing_ok=True)
    return record


def _pass_on(output: Path, begin: int, process: BaseProcess, lease: Path | None) -> str:
    """Copy text in `output` after byte `begin` to stderr until the process ends or the lease is lost; its end, on one line."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    recent, checked = "", time.monotonic()
    with output.open("rb") as file:
        file.seek(begin)
        alive = True
        while alive:
            process.join(_POLL_SECONDS)
            alive = process.is_alive()  # asked before the last read, so that no text is missed
            if text := decode(file.read()):
                sys.stderr.write(text)
                sys.stderr.flush()
                recent = (recent + text)[-2000:]
            if lease is not None and time.monotonic() - checked > _CHECK_SECONDS:
                checked = time.monotonic()
                if not is_held(lease):
                    break
    return " ".join(recent.split())[-300:]


def _end(process: BaseProcess, patience: float) -> None:
    """End the process, after `patience` seconds by force, and the processes that it started."""
    if process.pid is None or not process.is_alive():
        return
    children = _children(process.pid)
    try:
        process.terminate()
        process.join(patience)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        _kill(children)


def _children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _how_it_ended(code: int) -> str:
    number = -code if code < 0 else code - 128  # of a signal that the run did not, or did, handle
    if number not in list(signal.Signals):
        return f"the run's process ended with code {code}"
    name = signal.Signals(number).name
    return f"the run's process was ended by {name}" + (
        " (the system does so when memory runs out)" if name == "SIGKILL" else ""
    )


def _for_suite(record: Record, job: Job) -> Record:
    disturbed = True if job.lease is not None and is_disturbed(job.lease) else None
    return record.model_copy(update={"run_id": job.run_id, "adapter": job.folder, "tuning": job.tuning, "disturbed": disturbed})


def _do(job: Job, caller: _Caller, output: Path) -> None:
    """The entry point of the run's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the caller ends this process, by SIGTERM
    _end_with_server()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if job.lease is not None:
        begin_run(job.lease)
    os.chdir(caller.working_directory)
    os.environ.clear()
    os.environ.update(caller.environ)
    _redirect(output)
    try:
        with sigterm_raises(), log_to_stderr(caller.log_level, indent="  "), progress_bars(caller.bars):
            record = _attempt(job)
        if job.lease is None or is_held(job.lease):
            write_record(_for_suite(record, job), job.record_path.parent)
    except Stopped as stopped:
        sys.exit(128 + stopped.signal)
    except Exception as error:
        if (number := full_disk(error)) is None:
            raise
        _redirect(Path(os.devnull))  # for what is still in buffers
        sys.exit(_FULL_DISK + number)
    sys.exit(record.status == "failed")


def _attempt(job: Job) -> Record:
    try:
        return execute(
            job.config, job.out / job.folder, plugins=job.plugins(), resume="auto", overwrite=True, evaluate=job.evaluate,
            checkpoints=job.saves,
        ).record  # fmt: skip
    except Exception as error:  # whatever fails, the suite continues and the record states the error
        if full_disk(error) is not None:
            raise
        return failed_record(job.config, f"{type(error).__name__}: {error}", traceback.format_exc())


def _end_with_parent() -> None:
    """End this process and its children when the harness is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _kill(_children(os.getpid()))
        os._exit(1)


def _end_with_server() -> None:
    """Let Linux kill this process when the fork server dies, after which nobody would learn of its end."""
    if _FORKS:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _redirect(output: Path) -> None:
    """Redirect stdout and stderr, also those of C libraries, to the file `output`."""
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


@contextmanager
def _environ(wanted: Mapping[str, str]) -> Iterator[None]:
    """Add `wanted` to the environment inside the block, for a process that starts there."""
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep a process that starts inside the block from importing, and so running again, the caller's script."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
