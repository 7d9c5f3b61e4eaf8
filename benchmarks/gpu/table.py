"""The tables of the race on a GPU, from its record: `python benchmarks/readme_table.py` puts them into the READMEs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

DISCARDED = 3  # steps at the beginning of a run
_OTHERS = ("warm-up", "qwen")
_HELD = {"qlora": "lora", "qlora-decoder": "lora-decoder"}  # have the products of the layers that they hold
Record = dict[str, Any]


def gpu_table(path: Path) -> str:
    """Seconds of a step from the second epoch on, share of the GPU's peak, memory and captioning; "" without a record."""
    if not path.is_file():
        return ""
    record = json.loads(path.read_text(encoding="utf-8"))
    columns = (
        f"Trainer s/step ({record['workers']} workers)", "Trainer s/step (none)", "medgraft s/step", "step",
        "share of peak", "peak memory, GB", "captioning", "again",
    )  # fmt: skip
    lines = [f"| strategy | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    for name, runs in record["runs"].items():
        if name in _OTHERS:
            continue
        theirs, tutorial, ours = (_done(runs, column) for column in ("trainer", "tutorial", "medgraft"))
        shares = f"{_percent(_share(record, name, 'trainer'))} → {_percent(_share(record, name, 'medgraft'))}"
        lines.append(
            f"| {name} | {_number(_later(theirs), 3)} | {_number(_later(tutorial), 3)} | {_number(_later(ours), 3)} "
            f"| **{_ratio(_later(theirs), _later(ours))}** | {shares} "
            f"| {_number(_gigabytes(theirs), 1)} → {_number(_gigabytes(ours), 1)} "
            f"| {_ratio(_of(theirs, 'caption_seconds'), _of(ours, 'caption_seconds'))} "
            f"| {_ratio(_of(theirs, 'caption_again_seconds'), _of(ours, 'caption_again_seconds'))} |"
        )
    return "\n".join(lines) + f"\n\n{_note(record)}\n"


def gpu_details(path: Path) -> str:
    """What was measured of every run; "" without a record."""
    if not path.is_file():
        return ""
    record = json.loads(path.read_text(encoding="utf-8"))
    columns = (
        "s/step by epoch", "on the host's clock", "images/s", "TFLOP a step", "share of peak", "peak memory, GB", "features, s",
        "captioning, s", "again, s", "first loss",
    )  # fmt: skip
    lines = [f"| run | side | {' | '.join(columns)} |", "|---|---" + "|---:" * len(columns) + "|"]
    for name, runs in record["runs"].items():
        for column in runs if name != "warm-up" else ():
            run = _done(runs, column)
            if run is None:
                lines.append(f"| {name} | {column} | failed |" + " |" * (len(columns) - 1))
                continue
            batch = record["qwen_batch_size" if name == "qwen" else "batch_size"]
            flops = _flops(record, name, column)
            epochs = ", ".join(_number(seconds, 3) for seconds in _epochs(run))
            lines.append(
                f"| {name} | {column} | {epochs} | {_number(_later(run, 'step_seconds'), 3)} | {batch / _later(run):.0f} "
                f"| {_number(flops and flops / 1e12, 2)} | {_percent(_share(record, name, column))} "
                f"| {_number(_gigabytes(run), 1)} | {run['build_seconds']:.1f} | {_number(run['caption_seconds'] or None, 2)} "
                f"| {_number(run['caption_again_seconds'] or None, 2)} | {run['losses'][0]:.5f} |"
            )
    return "\n".join(lines) + "\n"


def _note(record: Record) -> str:
    """What was run where, and what is no strategy's."""
    full, frozen = record["runs"].get("full", {}), record["runs"].get("encoder-frozen", {})
    cross = _ratio(_later(_done(full, "trainer")), _later(_done(frozen, "medgraft")))
    memory = _of(_done(full, "medgraft"), "peak_memory_bytes"), _of(_done(full, "trainer"), "peak_memory_bytes")
    kept = f"{memory[0] / memory[1]:.2f}x" if memory[0] and memory[1] else "-"
    apart = [a for name in record["runs"] if name not in _OTHERS and (a := _apart(record["runs"][name])) is not None]
    machine, hardware, versions = record["machine"], record["hardware"], record["versions"]
    copy = machine["copy_bytes_per_second"]
    where = ", ".join(hardware["accelerators"]) or f"{hardware['cpu']}, {hardware['threads']} threads"
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes", "liger_kernel"))
    batch, kind = record["batch_size"], "bf16" if record["bf16"] else "fp32"
    text = (
        f"Encoder-frozen here against full there: {cross}. Memory of full: {kept}. {record['model']}, "
        f"{record['image_size']} px, batch {batch}, 3 epochs of {batch * record['steps_an_epoch']} images (JPEGs of "
        f"{record['jpeg']['side']} px), {kind}; captions of {record['test_images']} images, {record['max_new_tokens']} words "
        f"each. {where}: {machine['flops_per_second'] / 1e12:.1f} TFLOP/s in products of {machine['product']}"
        f"{f', {copy / 1e12:.2f} TB/s in copies' if copy else ''}. {named}; medgraft at {record['git']}. Steps are medians "
        f"from the second epoch on. *none*: images are decoded in the training process, as tutorials leave it. Every run "
        f"began without stored features. *again*: both sides caption the same images once more."
    )
    if apart:
        text += f" Loss of the first step: {max(apart):.0e} apart at most."
    return text + _qwen(record) + (f" Not run for lack of time: {'; '.join(record['not_run'])}." if record["not_run"] else "")


def _qwen(record: Record) -> str:
    runs = record["runs"].get("qwen", {})
    ours = _done(runs, "medgraft")
    if ours is None:
        return ""
    against = {"the Trainer with liger-kernel": _done(runs, "liger"), "the Trainer without": _done(runs, "trainer")}
    memory = ours["peak_memory_bytes"]
    told = [
        f"against {side} {_ratio(_later(run), _later(ours))} at {memory / run['peak_memory_bytes']:.2f}x the memory"
        for side, run in against.items()
        if run is not None
    ]
    layers = record["qwen_layers"]
    return (
        f" Qwen2.5-VL, {layers} layers a part, LoRA on its language model's attention, batch "
        f"{record['qwen_batch_size']}, from stored features: {'; '.join(told) or 'the other side failed'}."
    )


def _done(runs: Record, column: str) -> Record | None:
    """A run that came to its end."""
    run: Record = runs.get(column, {"error": "not run"})
    return None if "error" in run else run


def _steps(run: Record, clock: str = "device_step_seconds") -> list[float]:
    """Seconds of every step, by the GPU's clock where it has one."""
    steps: list[float] = run[clock] or run["step_seconds"]
    return steps


def _later(run: Record | None, clock: str = "device_step_seconds") -> float | None:
    """Median seconds of a step after the first epoch."""
    if run is None:
        return None
    steps = _steps(run, clock)
    return median(steps[max(len(steps) // run["epochs"], DISCARDED) :])


def _epochs(run: Record) -> list[float | None]:
    """Median seconds of a step in each epoch, without the steps that are discarded."""
    steps: list[float | None] = [*_steps(run)]
    steps[:DISCARDED] = [None] * DISCARDED
    length = len(steps) // run["epochs"]
    epochs = [[s for s in steps[i : i + length] if s is not None] for i in range(0, len(steps), length)]
    return [median(epoch) if epoch else None for epoch in epochs]


def _flops(record: Record, name: str, column: str) -> float | None:
    run = _done(record["runs"].get(_HELD.get(name, name), {}), "trainer" if column in ("tutorial", "liger") else column)
    return _of(run, "step_flops")


def _share(record: Record, name: str, column: str) -> float | None:
    """Of what the machine does in matrix products, what a step does."""
    seconds, flops = _later(_done(record["runs"][name], column)), _flops(record, name, column)
    return flops / seconds / record["machine"]["flops_per_second"] if flops and seconds else None


def _of(run: Record | None, key: str) -> float | None:
    return None if run is None else run[key] or None


def _gigabytes(run: Record | None) -> float | None:
    found = _of(run, "peak_memory_bytes")
    return found and found / 1e9


def _apart(runs: Record) -> float | None:
    theirs, ours = _done(runs, "trainer"), _done(runs, "medgraft")
    return None if theirs is None or ours is None else abs(theirs["losses"][0] / ours["losses"][0] - 1)


def _ratio(theirs: float | None, ours: float | None) -> str:
    return f"{theirs / ours:.1f}x" if theirs and ours else "-"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
