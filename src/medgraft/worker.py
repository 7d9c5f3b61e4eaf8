"""Runs in processes of their own, so that each one's peak memory is its own: `python -m medgraft.worker`.

Reads the path of a job file from every line of its input, does that run, and ends the run's output with a line of its exit
code behind `medgraft.benchmark.workers.END`. On Linux without an accelerator each run is a fork of this process, which has
imported what runs need. An accelerator's state does not survive a fork: with one, this process does one run and ends with its
code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from medgraft.quiet import quiet_libraries


def serve() -> int:
    """Do the runs that are asked for, one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches whoever started this process, which ends it in turn
    jobs = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    with open(os.devnull) as nothing:  # noqa: PTH123 - a run that asks a question gets no job for an answer
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no part of anybody's JSON
    quiet_libraries()  # bitsandbytes speaks when it is imported, so this comes before
    import torch

    import medgraft.benchmark.run  # noqa: F401 - before any fork
    from medgraft.benchmark.workers import END

    forks = sys.platform == "linux" and not torch.accelerator.is_available()
    for line in jobs:
        job = Path(os.fsdecode(line.rstrip(b"\n")))
        if not forks:
            return _do(job)
        code = _fork(job)
        sys.stderr.write(f"{END}{code}\n")
        sys.stderr.flush()
    return 0


def _fork(job: Path) -> int:
    """Do a run in a fork of this process; its exit code, or the negative number of the signal that ended it.

    Whoever ends this process meanwhile ends the run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        sys.exit(_do(job))

    def end(*_: object) -> None:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _, status = os.waitpid(child, 0)
    signal.signal(signal.SIGTERM, before)
    return os.waitstatus_to_exitcode(status)


def _do(job_file: Path) -> int:
    """Do the run that `job_file` describes and write its record; 1 if it failed, with the error in the record."""
    from medgraft.benchmark.record import write_record
    from medgraft.benchmark.run import execute, failed_record
    from medgraft.config import RunConfig
    from medgraft.errors import MedgraftError
    from medgraft.plugin import PluginManager

    job = json.loads(job_file.read_text(encoding="utf-8"))
    config = RunConfig.model_validate(job["config"])
    plugins = PluginManager.from_environment()
    try:
        done = execute(
            config,
            Path(job["out"]),
            plugins=plugins,
            resume=True,
            overwrite=True,
            evaluate=job["evaluate"],
            checkpoints=config.train.save_steps is not None,
            progress=job["progress"],
            say=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
        )
        record = done.record
    except (MedgraftError, RuntimeError, MemoryError) as error:
        record = failed_record(config, f"{type(error).__name__}: {error}")
    record = record.model_copy(update={"run_id": job["run_id"], "adapter": job["label"], "tuning": job["tuning"]})
    write_record(record, Path(job["records"]))
    return 0 if record.status == "ok" else 1


if __name__ == "__main__":
    sys.exit(serve())
