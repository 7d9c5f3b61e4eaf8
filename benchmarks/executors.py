"""Time one small grid with each executor, on this machine: local, submitit's local processes and a Ray cluster.

    python benchmarks/executors.py --out benchmarks/results/executors.json

The features of each suite's images are stored before. The load of other work is that of the machine before each suite.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

EXECUTORS: tuple[dict[str, Any], ...] = (
    {"name": "local"},
    {"name": "submitit", "cluster": "local", "workers": 2},
    {"name": "ray", "workers": 2},
)


def settings(executor: dict[str, Any]) -> dict[str, Any]:
    """The suite's settings."""
    return {
        "name": "executors", "backbones": ["blip-nano"], "strategies": ["encoder-frozen", "lora"], "seeds": [0, 1],
        "data": [{"name": "phantoms", "options": {"count": 200}}], "metrics": ["bleu"], "saliency": {"maps": 0},
        "train": {"max_steps": 40, "per_device_train_batch_size": 8}, "generation": {"max_new_tokens": 16},
        "executor": executor,
    }  # fmt: skip


def main() -> None:
    """Run each and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # as that of the others
    from medgraft.benchmark import run_suite
    from medgraft.config import SuiteConfig
    from medgraft.hardware import describe, versions
    from medgraft.plugin import PluginManager

    rows: list[dict[str, Any]] = []
    for executor in EXECUTORS:
        suite = SuiteConfig.model_validate(settings(executor))
        with tempfile.TemporaryDirectory() as folder:
            load, begin = os.getloadavg()[0], time.perf_counter()
            records = [r for r in run_suite(suite, Path(folder), plugins=PluginManager.from_environment()) if r.steps]
            seconds = time.perf_counter() - begin
        took = sum(sum(record.phase_seconds.values()) for record in records)
        name, workers = executor["name"], executor.get("workers", 1)
        rows.append(
            {
                "executor": name,
                "workers": workers,
                "seconds": seconds,
                "run_seconds": took,
                "other_load": load,
                "ok": len(records),
            }
        )
        print(rows[-1], flush=True)
    record = {"rows": rows, "runs": rows[0]["ok"], "hardware": asdict(describe()), "versions": versions()}
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
