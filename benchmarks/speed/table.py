"""The tables of the race, from its record: `python benchmarks/readme_table.py` puts them into the READMEs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

_HELD = {"qlora": "lora", "qlora-decoder": "lora-decoder", "lora-int8": "lora"}


def speed_table(path: Path) -> str:
    """Seconds of a step on both sides from the second epoch on, whole training, captioning and memory, with the ratios."""
    record = json.loads(path.read_text(encoding="utf-8"))
    runs = {name: run for name, run in record["runs"].items() if not name.startswith("profile")}
    first, blip2 = runs.pop("fp32-first-step"), runs.pop("blip2-lora-decoder")
    columns = "Trainer s/step", "medgraft s/step", "step", "limit (share)", "all epochs", "captioning", "again", "peak memory"
    lines = [f"| strategy | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    for name, run in runs.items():
        theirs, ours = run["trainer_script"], run["medgraft_side"]
        a, b = _later(theirs, record), _later(ours, record)
        memory = ours["peak_memory_bytes"] / theirs["peak_memory_bytes"]
        limit = a / (_operations(record, name) / record["flops_per_second"])
        second = ours.get("caption_again_seconds")
        again = f"{theirs['caption_seconds'] / second:.1f}x" if second else "-"
        lines.append(
            f"| {name} | {a:.2f} | {b:.2f} | **{a / b:.1f}x** | {limit:.1f}x ({a / b / limit:.0%}) "
            f"| {_whole(theirs) / _whole(ours):.1f}x "
            f"| {theirs['caption_seconds'] / ours['caption_seconds']:.1f}x "
            f"| {again} | {memory:.2f}x |"
        )
    machine, kind = record["hardware"], "bf16" if record["bf16"] else "fp32"
    grid = sum(map(_total, (run["trainer_script"] for run in runs.values()))) / sum(
        map(_total, (run["medgraft_side"] for run in runs.values()))
    )
    apart = abs(first["trainer_script"]["losses"][0] / first["medgraft_side"]["losses"][0] - 1)
    cross = _later(runs["full"]["trainer_script"], record) / _later(runs["encoder-frozen"]["medgraft_side"], record)
    speed = record["flops_per_second"] / 1e12
    allocator = runs["full"]["medgraft_side"].get("allocator")
    allocated = f", medgraft with {allocator}" if allocator else ""
    note = (
        f"{record['model']}, {record['image_size']} px, batch {record['batch_size']}, {record['epochs']} epochs of "
        f"{record['images']} images, {kind}; {machine['cpu']}, {machine['threads']} threads{allocated}, {speed:.2f} TFLOP/s "
        f"measured in {kind} matrix products. Steps are medians from the second epoch on; *limit*: what it would be were "
        f"medgraft's step its matrix products (filler included) at that rate and nothing else, and the share that is reached; "
        f"*all epochs* has the feature build in it; *again*: medgraft's second captioning of the same images, against the "
        f"Trainer's first. The whole grid: {grid:.1f}x. Encoder-frozen here against full there: {cross:.1f}x. Loss of the "
        f"first step in fp32: {apart:.0e} apart. {_blip2(blip2, record)}{_checkpointed(runs['full'], record)}"
        f"{_trainer_with_tcmalloc(runs['full'], record)}"
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def _blip2(runs: dict[str, Any], record: dict[str, Any]) -> str:
    seconds = {side: _later(run, record) for side, run in runs.items()}
    told = f"against recomputing them {seconds['recomputed'] / seconds['stored']:.1f}x"
    if "trainer_script" in seconds:
        told += f", against the Trainer {seconds['trainer_script'] / seconds['stored']:.1f}x"
    part = record.get("blip2_part", 4)
    return f"BLIP-2 at 1/{part} of its widths and depths, LoRA on the language model, from stored features: {told}."


def _checkpointed(runs: dict[str, Any], record: dict[str, Any]) -> str:
    if "checkpointed" not in runs:
        return ""
    theirs, ours = runs["trainer_script"], runs["checkpointed"]
    memory, step = ours["peak_memory_bytes"] / theirs["peak_memory_bytes"], _later(theirs, record) / _later(ours, record)
    told = f"{memory:.2f}x the memory, {step:.1f}x"
    return f" Full training here with gradient checkpointing, against full there without: {told}."


def _trainer_with_tcmalloc(runs: dict[str, Any], record: dict[str, Any]) -> str:
    run = runs.get("trainer_with_tcmalloc")
    if run is None:
        return ""
    peaks = f"{run['peak_memory_bytes'] / 1e9:.1f} GB for {runs['trainer_script']['peak_memory_bytes'] / 1e9:.1f}"
    return f" The Trainer's full with tcmalloc too: {_later(run, record):.2f} s/step, {peaks}."


def profile_table(path: Path) -> str:
    """The share of each kind of kernel in the time of a step, on both sides."""
    record = json.loads(path.read_text(encoding="utf-8"))
    profiles = {name.partition(" ")[2]: run for name, run in record["runs"].items() if name.startswith("profile")}
    kinds = ("products", "attention", "softmax", "gelu", "norm", "casts and copies", "quantisation", "optimiser", "other")
    lines = ["| strategy | side | TFLOP a step | " + " | ".join(kinds) + " |", "|---|---|" + "---:|" * (len(kinds) + 1)]
    for name, run in profiles.items():
        for side, label in (("trainer_script", "Trainer"), ("medgraft_side", "medgraft")):
            found = run[side]["kernels"]
            whole = sum(found.get(kind, 0) for kind in kinds)
            shares = " | ".join(f"{found.get(kind, 0) / whole:.0%}" for kind in kinds)
            lines.append(f"| {name} | {label} | {_profiled(run[side]) / 1e12:.2f} | {shares} |")
    return "\n".join(lines) + "\n"


def _operations(record: dict[str, Any], name: str) -> float:
    """Floating-point operations of the matrix products of one step on medgraft's side, attention's among them.

    torch's counter does not know quantised layers, which have the products of the layers that they hold. Records without its
    count have the profiler's, which knows attention by single products only.
    """
    counted = record["runs"][_HELD.get(name, name)]["medgraft_side"].get("step_flops")
    if counted:
        return float(counted)
    return _profiled(record["runs"][f"profile {name}"]["medgraft_side"])


def _profiled(run: dict[str, Any]) -> float:
    """Floating-point operations of a step by the profiler."""
    kernels = run["kernels"]
    return float(kernels["flops"] / kernels.get("steps", len(run["step_seconds"])))


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
