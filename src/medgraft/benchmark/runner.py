"""Running a suite: each missing run in its own process, its record kept, failures included."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medgraft.adapter import load_base
from medgraft.benchmark.record import Record, read_record, run_id, write_record
from medgraft.benchmark.run import failed_record, needed_splits
from medgraft.benchmark.suite import expand
from medgraft.config import RunConfig, SuiteConfig
from medgraft.data import data_fingerprint, load_data
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, get_strategy
from medgraft.train import hardware


@dataclass(frozen=True)
class PlannedRun:
    """A run with its id, and the label under which its files are kept."""

    config: RunConfig
    run_id: str

    @property
    def label(self) -> str:
        """Readable and unique folder name."""
        words = (self.config.backbone.partition(":")[0], self.config.strategy, self.config.data.name, f"s{self.config.seed}")
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(words)) + "_" + self.run_id[:8]


def plan(suite: SuiteConfig, *, plugins: PluginManager) -> tuple[PlannedRun, ...]:
    """The suite's runs with their ids.

    Reads the data and the base weights and raises what is wrong with any of them, so that a misspelled name ends the
    suite before its first run and not after hours.
    """
    versions = hardware.versions()
    bases: dict[str, str] = {}
    prints: dict[tuple[str, tuple[str, ...]], str] = {}
    planned = []
    for config in expand(suite):
        strategy = get_strategy(config.strategy, config.strategy_options, plugins=plugins)
        for metric in config.metrics:
            plugins.get("metric", metric)
        splits = needed_splits(config, strategy)
        data_key = (config.data.model_dump_json(), splits)
        if data_key not in prints:
            prints[data_key] = data_fingerprint(load_data(config.data, plugins=plugins, splits=splits).examples)
        if config.backbone not in bases:
            bases[config.backbone] = load_base(config.backbone, Strategy(), plugins=plugins).fingerprint()
        planned.append(PlannedRun(config, run_id(config, strategy, prints[data_key], bases[config.backbone], versions)))
    return tuple(planned)


def run_suite(
    suite: SuiteConfig,
    out: Path,
    *,
    plugins: PluginManager,
    retry_failed: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Record, ...]:
    """Do every run of `suite` that has no record in `out/records` yet; the records of all its runs, in its order."""
    records = out / "records"
    runs = plan(suite, plugins=plugins)
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
