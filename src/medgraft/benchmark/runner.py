"""Running a suite: each missing run in its own process, its record kept, failures included."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from medgraft.benchmark.baselines import run_baselines
from medgraft.benchmark.plan import PlannedRun, plan
from medgraft.benchmark.record import Record, read_record, write_record
from medgraft.benchmark.run import failed_record
from medgraft.config import SuiteConfig
from medgraft.plugin import PluginManager


def run_suite(
    suite: SuiteConfig,
    out: Path,
    *,
    plugins: PluginManager,
    retry_failed: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Record, ...]:
    """Do every run of `suite` that has no record in `out/records` yet; the records of all its runs, in its order.

    Records of the baselines follow, for each data set that something was trained on.

    Pairs of backbone and strategy that cannot be run are left out, and `say` is told why.
    """
    records = out / "records"
    planned_suite = plan(suite, plugins=plugins)
    runs = planned_suite.runs
    for (backbone, strategy), reason in planned_suite.unsupported.items():
        say(f"left out: {strategy} on {backbone}: {reason}")
    results = []
    for number, planned in enumerate(runs, start=1):
        path = records / f"{planned.run_id}.json"
        name = f"[{number}/{len(runs)}] {planned.config.backbone} {planned.config.strategy} seed {planned.config.seed}"
        known = read_record(path) if path.is_file() else None
        if known is not None and (known.status == "ok" or not retry_failed):
            say(f"{name}: done before" + (" (failed; --retry-failed tries again)" if known.status == "failed" else ""))
            results.append(known)
            continue
        say(name)
        record = _run(planned, out, records, progress)
        if record.status == "failed":
            say(f"  failed: {record.error}")
        results.append(record)
    trained = {run.config.data.model_dump_json(): run.config for run in runs if run.config.strategy != "zero-shot"}
    for config in trained.values():
        results += run_baselines(config, out, plugins=plugins)
    return tuple(results)


def _run(planned: PlannedRun, out: Path, records: Path, progress: bool) -> Record:
    folder = out / "runs" / planned.label
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.json"
    content = {
        "config": planned.config.model_dump(mode="json"), "run_id": planned.run_id, "label": f"runs/{planned.label}",
        "out": str(folder), "records": str(records), "progress": progress,
    }  # fmt: skip
    job.write_text(json.dumps(content), encoding="utf-8")
    code, tail = _watch([sys.executable, "-m", "medgraft.worker", str(job)])
    path = records / f"{planned.run_id}.json"
    if path.is_file():
        return read_record(path)
    # the process died before it could say why: killed for memory, or a crash in native code
    error = f"the run's process ended with code {code}: {tail or 'no output'}"
    record = failed_record(planned.config, error).model_copy(update={"run_id": planned.run_id})
    write_record(record, records)
    return record


def _watch(command: list[str]) -> tuple[int, str]:
    """Run `command` with its output passed on as it comes, progress bars included; its exit code and last words."""
    recent: deque[str] = deque(maxlen=400)
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, bufsize=0) as process:
        assert process.stderr is not None
        try:
            while character := process.stderr.read(1):
                recent.append(character)
                sys.stderr.write(character)
                if character in "\r\n":
                    sys.stderr.flush()
        except KeyboardInterrupt:
            process.terminate()
            raise
        code = process.wait()
    return code, " ".join("".join(recent).split())[-300:]
