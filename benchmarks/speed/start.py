"""From a process's start to its first step, with an empty cache and again with the file index that the first run left.

    python benchmarks/speed/start.py --backbone blip:FOLDER --data roco:FOLDER --strategy lora

Each run is a process of its own that stops at its first step. Seconds of the clock stand beside those of the CPU, which
other work on the machine does not stretch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# what a start consists of, in the places where a run looks it up
_PARTS = {
    "check images": ("medgraft.data.image_chunks", "check_images"),
    "data fingerprint": ("medgraft.benchmark.before_training", "data_fingerprint"),
    "load base": ("medgraft.prepare", "load_model"),
    "digests of the base": ("medgraft.backbones.from_checkpoint", "read_checkpoint"),
    "apply strategy": ("medgraft.prepare", "apply_strategy"),
    "digest of the prefix": ("medgraft.features.cached", "prefix_key"),
    "digests of trained parameters": ("medgraft.benchmark.run", "in_place_digests"),
}


def main() -> None:
    """Parse, run twice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--strategy", default="lora")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        found = [_start(options, Path(cache), number) for number in range(options.runs)]
    for name in found[0]:
        print(f"{name:32}" + "".join(f"{run[name][0]:9.1f} s {run[name][1]:7.1f} CPU s" for run in found))


def _start(options: argparse.Namespace, cache: Path, number: int) -> dict[str, list[float]]:
    command = [
        "train", "--backbone", options.backbone, "--data", options.data, "--strategy", options.strategy,
        "--out", str(cache / f"out-{number}"), "--max-steps", "1", "--no-eval",
        *(part for override in options.overrides for part in ("--set", override)),
    ]  # fmt: skip
    own = {"MEDGRAFT_CACHE": str(cache), "MEDGRAFT_FEATURES": str(cache / "features"), "HF_HUB_OFFLINE": "1"}
    job = json.dumps({"command": command, "started": time.time()})
    done = subprocess.run([sys.executable, __file__, "--child", job], env=os.environ | own, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _child(job: dict[str, Any]) -> None:
    """Do the command with a clock around each part, up to the first step."""
    parts: dict[str, list[float]] = {}
    from medgraft.training.trainer import CaptionTrainer

    imported = time.time() - job["started"], time.process_time()
    for name, (module, function) in _PARTS.items():
        parts[name] = [0.0, 0.0]
        _time(importlib.import_module(module), function, parts[name])
    from medgraft.cli.main import main as medgraft

    def first_step(*_: object, **__: object) -> None:
        whole = time.time() - job["started"], time.process_time()
        rest = [w - i - sum(p[k] for p in parts.values()) for k, (w, i) in enumerate(zip(whole, imported, strict=True))]
        print(json.dumps({"imports": imported, **parts, "everything else": rest, "start to first step": whole}), flush=True)
        os._exit(0)

    CaptionTrainer.training_step = first_step
    sys.exit(medgraft(job["command"]))


def _time(module: Any, name: str, total: list[float]) -> None:
    plain: Callable[..., Any] = getattr(module, name)

    def timed(*args: Any, **options: Any) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        try:
            return plain(*args, **options)
        finally:
            total[0] += time.perf_counter() - start
            total[1] += time.process_time() - cpu

    setattr(module, name, timed)


if __name__ == "__main__":
    _child(json.loads(sys.argv[2])) if sys.argv[1:2] == ["--child"] else main()
