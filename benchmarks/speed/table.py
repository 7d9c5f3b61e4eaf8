"""The tables of the race, from its record: `python benchmarks/readme_table.py` puts them into the READMEs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any


def speed_table(path: Path) -> str:
    """Seconds of a step on both sides from the second epoch on, whole training, captioning and memory, with the ratios."""
    record = json.loads(path.read_text(encoding="utf-8"))
    runs = dict(record["runs"])
    first, blip2 = runs.pop("fp32-first-step"), runs.pop("blip2-lora-decoder")
    head = "| strategy | Trainer s/step | medgraft s/step | step | all epochs | captioning | peak memory |"
    lines = [head, "|---" + "|---:" * 6 + "|"]
    for name, run in runs.items():
        theirs, ours = run["trainer_script"], run["medgraft_side"]
        a, b = _later(theirs, record), _later(ours, record)
        memory = ours["peak_memory_bytes"] / theirs["peak_memory_bytes"]
        lines.append(
            f"| {name} | {a:.2f} | {b:.2f} | **{a / b:.1f}x** | {_whole(theirs) / _whole(ours):.1f}x "
            f"| {theirs['caption_seconds'] / ours['caption_seconds']:.1f}x | {memory:.2f}x |"
        )
    machine, kind = record["hardware"], "bf16" if record["bf16"] else "fp32"
    grid = sum(map(_total, (run["trainer_script"] for run in runs.values()))) / sum(
        map(_total, (run["medgraft_side"] for run in runs.values()))
    )
    apart = abs(first["trainer_script"]["losses"][0] / first["medgraft_side"]["losses"][0] - 1)
    cross = _later(runs["full"]["trainer_script"], record) / _later(runs["encoder-frozen"]["medgraft_side"], record)
    speed = record["flops_per_second"] / 1e12
    note = (
        f"{record['model']}, {record['image_size']} px, batch {record['batch_size']}, {record['epochs']} epochs of "
        f"{record['images']} images, {kind}; {machine['cpu']}, {machine['threads']} threads, {speed:.2f} TFLOP/s measured in "
        f"{kind} matrix products. Steps are medians from the second epoch on; *all epochs* has the feature build in it. The "
        f"whole grid: {grid:.1f}x. Encoder-frozen here against full there: {cross:.1f}x. Loss of the first step in fp32: "
        f"{apart:.0e} apart. BLIP-2 at a quarter of its widths and depths, LoRA on the language model, from stored features "
        f"against recomputing them: {_later(blip2['recomputed'], record) / _later(blip2['stored'], record):.1f}x."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def _later(run: dict[str, Any], record: dict[str, Any]) -> float:
    """Median seconds of a step after the first epoch."""
    steps: list[float] = run["step_seconds"]
    return median(steps[len(steps) // record["epochs"] :])


def _whole(run: dict[str, Any]) -> float:
    """Seconds for the weights: the feature build and every step."""
    return float(run["build_seconds"] + sum(run["step_seconds"]))


def _total(run: dict[str, Any]) -> float:
    """Seconds for weights and captions."""
    return _whole(run) + float(run["caption_seconds"])
