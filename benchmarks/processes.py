"""Time one training in one process and in two on the CPU, with the same batches of both together and one thread each.

    python benchmarks/processes.py --out benchmarks/results/processes.json

The model is a BLIP of 6 + 6 layers of width 384 with random weights, 128 px; data are phantoms. Two processes are started
by torch.distributed.run; the numbers are those of its record: the median step, and the seconds of captioning the test images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BATCH, STEPS, CAPTIONS = 8, 10, 16
STRATEGIES = ("full", "lora")


def measure(blip: Path, data: Path, out: Path, strategy: str, processes: int) -> dict[str, object]:
    """Train and caption, in a launch of so many processes; the record's numbers."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes > 1 else []
    options = ["--out", out, "--batch-size", BATCH // processes, "--max-steps", STEPS, "--dtype", "fp32", "--json"]
    options += ["--max-images", CAPTIONS]
    sets = ["train.per_device_eval_batch_size=4", "generation.max_new_tokens=20", "features.enabled=false"]
    words = ["-m", "medgraft", "train", "-q", "--backbone", f"blip:{blip}", "--strategy", strategy, "--data", f"roco:{data}"]
    command = [*launch, *words, *options, *(word for each in sets for word in ("--set", each))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEDGRAFT_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=True, env=environment)
    record = json.loads(done.stdout)
    low, median, high = record["step_quartiles"]
    return {
        "strategy": strategy, "processes": record["processes"], "step_seconds": round(median, 3),
        "quartiles": [round(low, 3), round(high, 3)], "captioning_seconds": round(record["phase_seconds"]["generation"], 2),
        "peak_memory_bytes": record["peak_memory_bytes"], "last_loss": record["train_loss"][-1],
    }  # fmt: skip


def main() -> None:
    """Parse, write model and data, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from synthetic_models import write_blip

    from medgraft.data.phantoms import write_phantoms
    from medgraft.hardware import describe, versions

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blip = write_blip(folder / "blip", layers=6, width=384, image_size=128)
        write_phantoms(folder / "data", count=160, seed=0)
        rows = [
            measure(blip, folder / "data", folder / f"{strategy}-{count}", strategy, count)
            for strategy in STRATEGIES
            for count in (1, 2)
        ]
    found = {"batch": BATCH, "steps": STEPS, "captions": CAPTIONS, "rows": rows}
    found |= {"hardware": str(describe()), "load": list(os.getloadavg()), "versions": versions()}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
