"""Runs in processes of their own, so that each one's peak memory is its own: `python -m medgraft.worker`.

Reads the path of a job file from every line of its input, does that run, and ends the run's output with a line of its exit
code behind `medgraft.benchmark.workers.END`. On a CPU under Linux each run is a fork of this process, which has imported
what runs need. An accelerator's state does not survive a fork: with one, this process does one run and ends with its code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from medgraft.quiet import quiet_libraries


def serve() -> int:
    """Do the runs that are asked for, one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches whoever started this process, which ends it in turn
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no part of anybody's JSON
    quiet_libraries()  # bitsandbytes speaks when it is imported, so this comes before
    import medgraft.benchmark.run  # noqa: F401 - before any fork
    from medgraft import hardware
    from medgraft.benchmark.workers import END

    for line in sys.stdin:
        job = Path(line.rstrip("\n"))
        if hardware.device().type != "cpu" or sys.platform != "linux":
            return _do(job)
        code = _fork(job)
        sys.stderr.write(f"{END}{code}\n")
        sys.stderr.flush()
    return 0


def _fork(job: Path) -> int:
    """Do a run in a fork of this process; its exit code, or the negative number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = 1
        try:
            code = _do(job)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def end(*_: object) -> None:
        os.kill(child, signal.SIGTERM)
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)  # whoever ends this process ends the run
    _, status = os.waitpid(child, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
