"""Whether a harness stays as small as it began: `python benchmarks/soak.py` does 200 tiny runs in one suite.

Memory, open files and threads of the harness are read at the start of each run; the last quarter of the runs is compared with
the second. Writes `benchmarks/results/soak.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
from synthetic_models import write_blip

from medgraft import hardware
from medgraft.benchmark import run_suite
from medgraft.config import SuiteConfig
from medgraft.data.phantoms import write_phantoms
from medgraft.plugin import PluginManager
from medgraft.progress import log_to_stderr, progress_bars

OUT = Path(__file__).parent / "results" / "soak.json"


class Meter(logging.Handler):
    """Reads this process's memory, files, threads and children when a run begins."""

    def __init__(self) -> None:
        super().__init__()
        self.process = psutil.Process()
        self.read: list[dict[str, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """One line of the harness."""
        if record.getMessage().startswith("["):
            self.read.append(
                {
                    "memory_bytes": self.process.memory_info().rss,
                    "open_files": self.process.num_fds(),
                    "threads": self.process.num_threads(),
                    "children": len(self.process.children(recursive=True)),
                }
            )


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    meter = Meter()
    logging.getLogger("medgraft").addHandler(meter)
    with TemporaryDirectory() as folder:
        base = write_blip(Path(folder) / "base", layers=1, width=32, image_size=32)
        write_phantoms(Path(folder) / "data", count=30, seed=5)
        suite = SuiteConfig.model_validate(
            {
                "name": "soak",
                "backbones": [f"blip:{base}"],
                "strategies": ["lora"],
                "seeds": list(range(runs)),
                "data": {"name": "roco", "path": f"{folder}/data", "max_images": 4},
                "train": {"max_steps": 1, "per_device_train_batch_size": 2},
                "generation": {"max_new_tokens": 2},
                "metrics": ["bleu"],
                "saliency": {"maps": 0},
            }
        )
        with log_to_stderr(), progress_bars(False):
            records = run_suite(suite, Path(folder) / "out", plugins=PluginManager.from_environment())
    assert all(record.status == "ok" for record in records)
    quarter = runs // 4
    second, last = meter.read[quarter : 2 * quarter], meter.read[-quarter:]
    medians = {
        name: {"second_quarter": median(r[name] for r in second), "last_quarter": median(r[name] for r in last)}
        for name in meter.read[0]
    }
    content = {"runs": runs, "hardware": asdict(hardware.describe()), "medians": medians, "at_each_run": meter.read}
    OUT.write_text(json.dumps(content) + "\n", encoding="utf-8")
    for name, each in medians.items():
        print(f"{name}: {each['second_quarter']:,.0f} in the second quarter, {each['last_quarter']:,.0f} in the last")


if __name__ == "__main__":
    main()
