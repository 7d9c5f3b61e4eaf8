"""One run in a process of its own, so that its peak memory is its own: `python -m medgraft.worker JOB.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from medgraft.quiet import quiet_libraries


def main(job_file: Path) -> int:
    """Do the run that `job_file` describes and write its record; 1 if it failed, with the error in the record."""
    quiet_libraries()  # bitsandbytes speaks when it is imported, so this comes before
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
    sys.exit(main(Path(sys.argv[1])))
