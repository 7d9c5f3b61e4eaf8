"""The tables of the race, from its records: `python benchmarks/readme_table.py` puts them into the READMEs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

_FIRST, _BLIP2 = _OTHERS = "fp32-first-step", "blip2-lora-decoder"  # in a record beside the strategies
_HELD = {"qlora": "lora", "qlora-decoder": "lora-decoder", "lora-int8": "lora"}


def speed_table(path: Path) -> str:
    """Seconds of a step on both sides from the second epoch on, whole training, captioning and memory, with the ratios.

    `path` is the record of a race, or a folder of those of several on one machine, whose medians are told.
    """
    races = _races(path)
    columns = "Trainer s/step", "medgraft s/step", "step", "limit (share)", "all epochs", "captioning", "again", "peak memory"
    lines = [f"| strategy | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    for name in _strategies(races[0]):
        of_races = [_numbers(race, name) for race in races]
        middle = {key: median(numbers[key] for numbers in of_races) for key in of_races[0]}
        step = _told([numbers["step"] for numbers in of_races], bold="**")
        lines.append(
            f"| {name} | {middle['theirs']:.2f} | {middle['ours']:.2f} | {step} "
            f"| {middle['limit']:.1f}x ({middle['share']:.0%}) | {middle['epochs']:.1f}x | {middle['captioning']:.1f}x "
            f"| {middle['again']:.1f}x | {middle['memory']:.2f}x |"
        )
    return "\n".join(lines) + f"\n\n{_note(races)}\n"


def _races(path: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]


def _strategies(race: dict[str, Any]) -> list[str]:
    return [name for name in race["runs"] if name not in _OTHERS and not name.startswith("profile")]


def _numbers(race: dict[str, Any], name: str) -> dict[str, float]:
    """A strategy's row of one race: seconds of a step, and the ratios."""
    theirs, ours = race["runs"][name]["trainer_script"], race["runs"][name]["medgraft_side"]
    a, b = _later(theirs, race), _later(ours, race)
    limit = a / (_operations(race, name) / race["flops_per_second"])
    return {
        "theirs": a, "ours": b, "step": a / b, "limit": limit, "share": a / b / limit, "epochs": _whole(theirs) / _whole(ours),
        "captioning": theirs["caption_seconds"] / ours["caption_seconds"],
        "again": theirs["caption_seconds"] / ours["caption_again_seconds"],
        "memory": ours["peak_memory_bytes"] / theirs["peak_memory_bytes"],
    }  # fmt: skip


def _note(races: list[dict[str, Any]]) -> str:
    """What was run where, and what is no strategy's."""
    race, kind = races[-1], "bf16" if races[-1]["bf16"] else "fp32"
    machine, allocator = race["hardware"], race["runs"]["full"]["medgraft_side"].get("allocator")
    allocated = f", medgraft with {allocator}" if allocator else ""
    several = f"Medians of {len(races)} races within some hours, and how far they are apart. " if len(races) > 1 else ""
    speed = median(race["flops_per_second"] for race in races) / 1e12
    grid = [_grid(race) for race in races]
    cross = [_numbers(race, "full")["theirs"] / _numbers(race, "encoder-frozen")["ours"] for race in races]
    apart = max(_apart(race["runs"][_FIRST]) for race in races)
    return (
        f"{race['model']}, {race['image_size']} px, batch {race['batch_size']}, {race['epochs']} epochs of "
        f"{race['images']} images, {kind}; {machine['cpu']}, {machine['threads']} threads{allocated}, {speed:.2f} TFLOP/s "
        f"measured in {kind} matrix products. {several}Steps are medians from the second epoch on; *limit*: what it would be "
        f"were medgraft's step its matrix products (filler included) at that rate and nothing else, and the share that is "
        f"reached; *all epochs* has the feature build in it; *again*: medgraft's second captioning of the same images, against "
        f"the Trainer's first. The whole grid: {_told(grid)}. Encoder-frozen here against full there: {_told(cross)}. Loss of "
        f"the first step in fp32: {apart:.0e} apart. {_blip2(races)}{_checkpointed(races)}{_trainer_with_tcmalloc(races)}"
    )


def _told(ratios: list[float], bold: str = "") -> str:
    """The median, and the extent if there are several."""
    return f"{bold}{median(ratios):.1f}x{bold}" + (f" ({min(ratios):.1f}-{max(ratios):.1f})" if len(ratios) > 1 else "")


def _grid(race: dict[str, Any]) -> float:
    runs = [race["runs"][name] for name in _strategies(race)]
    return sum(_total(run["trainer_script"]) for run in runs) / sum(_total(run["medgraft_side"]) for run in runs)


def _apart(first: dict[str, Any]) -> float:
    return abs(float(first["trainer_script"]["losses"][0] / first["medgraft_side"]["losses"][0]) - 1)


def _blip2(races: list[dict[str, Any]]) -> str:
    seconds = [{side: _later(run, race) for side, run in race["runs"][_BLIP2].items()} for race in races]
    recomputed, trainer = ([each[side] / each["stored"] for each in seconds] for side in ("recomputed", "trainer_script"))
    return (
        f"BLIP-2 at 1/{races[0]['blip2_part']} of its widths and depths, LoRA on the language model, from stored features: "
        f"against recomputing them {_told(recomputed)}, against the Trainer {_told(trainer)}."
    )


def _checkpointed(races: list[dict[str, Any]]) -> str:
    both = [(race["runs"]["full"]["trainer_script"], race["runs"]["full"]["checkpointed"], race) for race in races]
    memory = median(ours["peak_memory_bytes"] / theirs["peak_memory_bytes"] for theirs, ours, _ in both)
    step = median(_later(theirs, race) / _later(ours, race) for theirs, ours, race in both)
    told = f"{memory:.2f}x the memory, {step:.1f}x"
    return f" Full training here with gradient checkpointing, against full there without: {told}."


def _trainer_with_tcmalloc(races: list[dict[str, Any]]) -> str:
    full = [(race["runs"]["full"], race) for race in races if "trainer_with_tcmalloc" in race["runs"]["full"]]
    if not full:
        return ""
    seconds = median(_later(runs["trainer_with_tcmalloc"], race) for runs, race in full)
    sides = "trainer_with_tcmalloc", "trainer_script"
    peak, without = (median(runs[side]["peak_memory_bytes"] for runs, _ in full) / 1e9 for side in sides)
    return f" The Trainer's full with tcmalloc too: {seconds:.2f} s/step, {peak:.1f} GB for {without:.1f}."


def profile_table(path: Path) -> str:
    """The share of each kind of kernel in the time of a step, on both sides; of the last race in a folder."""
    race = _races(path)[-1]
    profiles = {name.partition(" ")[2]: run for name, run in race["runs"].items() if name.startswith("profile")}
    kinds = ("products", "attention", "softmax", "gelu", "norm", "casts and copies", "quantisation", "optimiser", "other")
    lines = ["| strategy | side | TFLOP a step | " + " | ".join(kinds) + " |", "|---|---|" + "---:|" * (len(kinds) + 1)]
    for name, run in profiles.items():
        for side, label in (("trainer_script", "Trainer"), ("medgraft_side", "medgraft")):
            found = run[side]["kernels"]
            whole = sum(found.get(kind, 0) for kind in kinds)
            shares = " | ".join(f"{found.get(kind, 0) / whole:.0%}" for kind in kinds)
            lines.append(f"| {name} | {label} | {_profiled(run[side]) / 1e12:.2f} | {shares} |")
    return "\n".join(lines) + "\n"


def _operations(race: dict[str, Any], name: str) -> float:
    """Floating-point operations of the matrix products of one step on medgraft's side, attention's among them.

    torch's counter does not know quantised layers, which have the products of the layers that they hold.
    """
    return float(race["runs"][_HELD.get(name, name)]["medgraft_side"]["step_flops"])


def _profiled(run: dict[str, Any]) -> float:
    """Floating-point operations of a step by the profiler."""
    kernels = run["kernels"]
    return float(kernels["flops"] / kernels.get("steps", len(run["step_seconds"])))


def _later(run: dict[str, Any], race: dict[str, Any]) -> float:
    """Median seconds of a step after the first epoch."""
    steps: list[float] = run["step_seconds"]
    return median(steps[len(steps) // race["epochs"] :])


def _whole(run: dict[str, Any]) -> float:
    """Seconds for the weights: the feature build and every step."""
    return float(run["build_seconds"] + sum(run["step_seconds"]))


def _total(run: dict[str, Any]) -> float:
    """Seconds for weights and captions."""
    return _whole(run) + float(run["caption_seconds"])
