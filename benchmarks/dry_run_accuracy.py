"""Compare the dry run's memory and time with measurements: ten runs on synthetic weights, each in a process of its own.

    python benchmarks/dry_run_accuracy.py --work /tmp/dry-run --out benchmarks/results/dry_run_accuracy.json

Memory is the peak of the whole process (VmHWM) without an accelerator. Seconds are those of training, once estimated from the
model's shapes and once by a probe (`bench --dry-run --probe`), which runs just before the measured run. On a machine with other
work the probe and the run are not equally disturbed; the load at the time is in the record.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

STEPS = 12
# model, strategy, dtype, batch
RUNS = (
    ("blip-base", "lora", "bf16", 4),
    ("blip-base", "full", "bf16", 2),
    ("blip-base", "encoder-frozen", "fp32", 4),
    ("blip-base", "qlora", "bf16", 2),
    ("blip-base", "zero-shot", "bf16", 4),
    ("blip-half", "full", "fp32", 12),
    ("blip-half", "lora", "fp32", 12),
    ("vit-gpt2", "full", "fp32", 4),
    ("vit-gpt2", "lora", "bf16", 8),
    ("blip2-part", "lora", "bf16", 4),
)


def write_models(work: Path) -> dict[str, str]:
    """NAME:FOLDER of each model, written if it is not there."""
    from synthetic_models import write_blip, write_blip2, write_vit_gpt2

    makers = {
        "blip-base": ("blip", write_blip, {"image_size": 224}),
        "blip-half": ("blip", write_blip, {"layers": 6, "width": 384, "image_size": 224}),
        "vit-gpt2": ("vit-gpt2", write_vit_gpt2, {"layers": 6}),
        "blip2-part": ("blip2", write_blip2, {"part": 2}),
    }
    for name, (_, write, options) in makers.items():
        if not (work / name / "config.json").is_file():
            write(work / name, **options)
    return {name: f"{kind}:{work / name}" for name, (kind, _, _) in makers.items()}


def settings(backbone: str, strategy: str, dtype: str, batch: int, steps: int) -> dict[str, Any]:
    """The settings of a suite with one run."""
    train = {
        "max_text_tokens": 40,
        "max_steps": steps,
        "dtype": dtype,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
    }
    return {
        "name": "accuracy", "backbones": [backbone], "strategies": [strategy], "train": train, "metrics": ["bleu"],
        "data": [{"name": "phantoms", "max_images": max(batch, 4)}], "features": {"enabled": False}, "saliency": {"maps": 0},
        "forgetting": {"images": 0}, "generation": {"max_new_tokens": 8},
    }  # fmt: skip


def run_one(suite: dict[str, Any], out: Path) -> None:
    """In this process: the only run of the suite."""
    from medgraft.benchmark import execute
    from medgraft.benchmark.plan import expand
    from medgraft.config import SuiteConfig
    from medgraft.plugin import PluginManager

    (config,) = expand(SuiteConfig.model_validate(suite))
    execute(config, out, plugins=PluginManager.from_environment(), overwrite=True, checkpoints=False)


def compare(suite: dict[str, Any], out: Path) -> dict[str, Any]:
    """What the dry run says, and what a process of its own measures."""
    from medgraft.benchmark import dry_run_suite
    from medgraft.config import SuiteConfig
    from medgraft.plugin import PluginManager

    (said,) = dry_run_suite(SuiteConfig.model_validate(suite), plugins=PluginManager.from_environment()).runs
    (probed,) = dry_run_suite(SuiteConfig.model_validate(suite), plugins=PluginManager.from_environment(), probes=True).runs
    environment = {**os.environ, "MEDGRAFT_RUN": json.dumps(suite), "MEDGRAFT_OUT": str(out)}
    subprocess.run([sys.executable, __file__, "--one"], check=True, env=environment, capture_output=True)
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    trained = record["training_seconds"] if record["steps"] else None
    return {
        "memory": {"said": said.memory_bytes, "probed": probed.memory_bytes, "measured": record["peak_memory_bytes"]},
        "training_seconds": {
            "said": said.training_seconds if trained else None,
            "probed": probed.training_seconds if trained and probed.probed else None,
            "measured": trained,
        },
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Parse, write models, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/medgraft-dry-run"))
    parser.add_argument("--out", type=Path, help="the record")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", type=int, nargs="+", default=range(len(RUNS)))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(json.loads(os.environ["MEDGRAFT_RUN"]), Path(os.environ["MEDGRAFT_OUT"]))
        return
    from medgraft.hardware import describe, versions

    models = write_models(options.work)
    runs = []
    for number in options.only:
        model, strategy, dtype, batch = RUNS[number]
        found = compare(settings(models[model], strategy, dtype, batch, options.steps), options.work / f"run-{number}")
        runs.append({"model": model, "strategy": strategy, "dtype": dtype, "batch": batch, **found})
        memory = found["memory"]
        print(number, model, strategy, dtype, batch, f"{memory['said'] / memory['measured']:.2f}", found, flush=True)
        record = {"steps": options.steps, "runs": runs, "hardware": asdict(describe()), "versions": versions()}
        if options.out:
            options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
