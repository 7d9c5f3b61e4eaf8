"""medgraft against a tutorial's Trainer script, the same work on both sides: `python benchmarks/speed/run.py`.

Writes a full-size BLIP with synthetic weights (or takes a checkpoint folder, `--model`), phantoms as images, and runs every
strategy on both sides in turn, each in a process of its own, so that both meet the same state of the machine. The record
goes to `--out`, and its table is printed; from records in results/speed `python benchmarks/readme_table.py` makes the tables
of README.md and benchmarks/README.md. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
STRATEGIES = (
    "encoder-frozen", "full", "lora-decoder", "lora", "qlora-decoder", "qlora", "decoder-frozen", "lora-int8",
)  # fmt: skip
BLIP2_PART = 2  # of the real widths and depths: one half
WITH_TCMALLOC = "trainer_with_tcmalloc"
RATES = {"full": 1e-5, "encoder-frozen": 1e-5, "decoder-frozen": 1e-5}


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/speed.json"))
    parser.add_argument("--model", type=Path, help="a BLIP checkpoint folder instead of synthetic weights")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--images", type=int, default=24, help="for training")
    parser.add_argument("--test-images", type=int, default=16, help="to be captioned")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=20)
    parser.add_argument("--strategies", nargs="*", default=STRATEGIES)
    parser.add_argument("--losses-only", action="store_true", help="without BLIP-2, captions and profiles: for losses.py")
    return parser.parse_args()


def main() -> int:
    """Run what the record lacks."""
    from synthetic_models import write_blip, write_blip2
    from table import speed_table

    from medgraft import hardware
    from medgraft.benchmark.estimate import measured_flops
    from medgraft.data.phantoms import write_phantoms
    from medgraft.data.roco import Roco
    from medgraft.environment import run_environment
    from medgraft.quiet import quiet_libraries

    options = parse()
    quiet_libraries()
    flops = measured_flops(2.0)  # before anything is written, which the system goes on doing for a while
    work = Path(tempfile.mkdtemp(prefix="medgraft-speed-"))
    try:
        model = options.model
        if model is None:
            model = write_blip(work / "blip", layers=options.layers, width=options.width, image_size=options.image_size)
        write_phantoms(work / "phantoms", count=3 * (options.images + options.test_images))
        examples = list(Roco().read(work / "phantoms"))
        pairs = [(str(e.image), e.captions[0]) for e in examples][: options.images]
        test = [] if options.losses_only else [str(e.image) for e in examples[options.images :]][: options.test_images]
        job = {
            "model": str(model), "train": pairs, "test": test, "batch_size": options.batch_size, "epochs": options.epochs,
            "bf16": hardware.bf16_supported("cpu"), "seed": 0, "max_new_tokens": options.max_new_tokens,
            "out": str(work / "out"),
        }  # fmt: skip
        record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"runs": {}}
        same = {"blip2_part": BLIP2_PART, "bf16": job["bf16"], "cpu": hardware.describe().cpu}
        told = {name: record.get(name, record.get("hardware", {}).get(name)) for name in same}
        if record["runs"] and told != same:
            raise SystemExit(f"{options.out} is of {told}, this would be {same}: give another --out.")
        record |= {
            "hardware": asdict(hardware.describe()), "versions": hardware.versions(), "git": hardware.git_revision(),
            "flops_per_second": max(record.get("flops_per_second", 0.0), flops), "images": len(pairs), "test_images": len(test),
            "batch_size": options.batch_size, "epochs": options.epochs, "bf16": job["bf16"],
            "model": "a checkpoint" if options.model else f"BLIP of width {options.width}, synthetic weights",
            "image_size": options.image_size, "blip2_part": BLIP2_PART,
        }  # fmt: skip
        one = {"epochs": 1, "train": pairs[: options.batch_size], "test": []}
        runs = {"fp32-first-step": {**job, **one, "bf16": False, "strategy": "full", "learning_rate": 1e-5}}
        runs |= {s: {**job, "strategy": s, "learning_rate": RATES.get(s, 1e-4)} for s in options.strategies}
        # LoRA on BLIP-2's language model, with and without the store
        blip2 = {
            **job,
            "test": [],
            "backbone": "blip2",
            "max_text_tokens": 30,
            "model": str(write_blip2(work / "blip2", part=BLIP2_PART)),
            "strategy": "lora-decoder",
        }
        sides = (("trainer_script", "trainer_script"), ("recomputed", "medgraft_side"), ("stored", "medgraft_side"))
        for side, script in () if options.losses_only else sides:
            settings = {**blip2, "learning_rate": 1e-4, "features": side == "stored"}
            _once(record, options.out, "blip2-lora-decoder", side, script, settings, work)
        for name, settings in runs.items():
            for side in ("trainer_script", "medgraft_side"):
                _once(record, options.out, name, side, side, settings, work)
            if name == "full" and not options.losses_only:
                checkpointed = {**settings, "gradient_checkpointing": True}
                _once(record, options.out, name, "checkpointed", "medgraft_side", checkpointed, work)
                if "LD_PRELOAD" in run_environment({}):
                    _once(record, options.out, name, WITH_TCMALLOC, "trainer_script", settings, work)
        for name in () if options.losses_only else options.strategies:
            profiled = {**runs[name], "epochs": 3, "train": pairs[: options.batch_size], "test": [], "profile": True}
            for side in ("trainer_script", "medgraft_side"):
                _once(record, options.out, f"profile {name}", side, side, profiled, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not options.losses_only and set(options.strategies) == set(STRATEGIES):
        print(f"\n{speed_table(options.out)}")
    return 0


def _once(record: dict[str, Any], out: Path, name: str, side: str, script: str, job: dict[str, Any], work: Path) -> None:
    """Do one run unless the record has it, and write the record."""
    runs = record["runs"].setdefault(name, {})
    if side not in runs:
        start = time.perf_counter()
        runs[side] = _run(script, job, work, tcmalloc=script == "medgraft_side" or side == WITH_TCMALLOC)
        runs[side]["wall_seconds"] = time.perf_counter() - start
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    steps = runs[side]["step_seconds"]
    print(f"{name:<19} {side:<15} {sorted(steps)[len(steps) // 2]:6.2f} s a step", flush=True)


def _run(side: str, job: dict[str, Any], work: Path, *, tcmalloc: bool) -> dict[str, Any]:
    """What a side tells; with its allocator, as the runs of medgraft's suites are."""
    from medgraft.environment import run_environment

    path = work / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    environment = os.environ | {"MEDGRAFT_FEATURES": str(work / "features"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment = run_environment(environment) if tcmalloc else environment
    command = [sys.executable, str(HERE / f"{side}.py"), str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed on {job['strategy']}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    sys.exit(main())
