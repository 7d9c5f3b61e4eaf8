"""The plan of a suite as text for a terminal 80 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from medgraft.backbones import Usage
from medgraft.benchmark import DryRun
from medgraft.benchmark.estimate import RunEstimate
from medgraft.benchmark.grid import GridPlan
from medgraft.report.wrapping import item

_WHERE = {"folder": "in a folder here", "cached": "in the hub's cache", "hub": "to download", "api": "behind an API"}


def dry_run_text(plan: DryRun) -> str:
    """Data, downloads, the cost of each run on this machine, captions in tokens, what is left out and what is missing."""
    blocks = [f"Plan of {plan.suite}: {len(plan.runs)} runs", _machine(plan), _weights(plan), _runs(plan.runs) + _besides(plan)]
    if plan.grid:
        blocks.append(_grid(plan.grid))
    if plan.text:
        blocks.append("Captions\n" + "\n".join(item(f"{name}: {' '.join(lines)}") for name, lines in plan.text.items()))
    if plan.not_probed:
        blocks.append("Not probed\n" + "\n".join(item(f"{run}: {reason}") for run, reason in plan.not_probed.items()))
    if plan.left_out:
        blocks.append("Left out\n" + "\n".join(item(f"{pair}: {reason}") for pair, reason in plan.left_out.items()))
    blocks.append("Missing\n" + "\n".join(map(item, plan.missing)) if plan.missing else "Nothing is missing.")
    return "\n\n".join(blocks)


def _machine(plan: DryRun) -> str:
    machine = plan.hardware
    what = ", ".join(machine.accelerators or [str(machine.cpu), f"{machine.threads} threads"])
    kind = "bf16" if machine.bf16 else "fp32"
    lines = [
        f"{what}, {(machine.memory_bytes or 0) / 2**30:.0f} GB of memory",
        f"matrix products at {plan.flops_per_second / 1e12:.1f} TFLOP/s in {kind}",
    ]
    for name, counts in plan.images.items():
        found = "not found" if counts is None else ", ".join(f"{n:,} {split}" for split, n in counts.items() if n)
        lines.append(f"{name}: {found}")
        lines += map(item, plan.notes.get(name, ()))
    return "\n".join(lines)


def _weights(plan: DryRun) -> str:
    lines = ["Weights"]
    for weights in plan.weights:
        known = "of unknown size" if weights.bytes is None else _size(weights.bytes)
        where = _WHERE[weights.where] + (f", {known}" if weights.where == "hub" else "")
        lines += [f"  {weights.backbone}", f"    {where}"]
    fetched = [weights.bytes for weights in plan.weights if weights.where == "hub"]
    if fetched:
        unknown = " and what is unknown" if None in fetched else ""
        lines.append(f"  All downloads: {_size(sum(size or 0 for size in fetched))}{unknown}")
    return "\n".join(lines)


def _runs(runs: Sequence[RunEstimate]) -> str:
    probed = "; * measured by a probe" if any(run.probed for run in runs) else ""
    lines = [f"Runs (estimated from shapes; times within a factor of about two{probed})"]
    several = len({run.data for run in runs}) > 1
    for (backbone, data), group in groupby(runs, key=lambda run: (run.backbone, run.data)):
        lines += [
            f"  {backbone} on {data}" if several else f"  {backbone}",
            f"    {'strategy':<19}{'trained':>9}{'loading':>10}{'memory':>9}{'training':>11}{'captioning':>12}",
        ]
        lines += [_run(run) for run in group]
    known = [(run.training_seconds or 0) + (run.captioning_seconds or 0) for run in runs if run.captioning_seconds is not None]
    lines.append(f"  All runs: {_time(sum(known))}" if known else "  Times need the data.")
    return "\n".join(lines)


def _grid(grid: GridPlan) -> str:
    """Time and money for all runs on the workers."""
    lines = [f"Grid of {grid.runs:,} runs on {grid.workers} worker{'s' if grid.workers > 1 else ''}"]
    if grid.seconds is not None and grid.work_seconds is not None:
        rented = _time(grid.seconds * grid.workers)
        money = "" if grid.price is None else f", which costs {grid.price:,.2f}"
        lines.append(
            item(f"{_time(grid.seconds)} from start to end, {_time(grid.work_seconds)} of work; {rented} of workers{money}")
        )
    if grid.records:
        lines.append(item(f"Times are fitted to {grid.records} finished runs on {' and '.join(grid.machines)}."))
    else:
        lines.append(item("Times are rough. Do a part of the grid, and they are fitted to its records (--out)."))
    if grid.store_bytes is not None:
        lines.append(item(f"Stored features take {_size(grid.store_bytes)}, on each machine with a store of its own."))
    return "\n".join(lines)


def _besides(plan: DryRun) -> str:
    """The number of runs besides the suite's own."""
    parts = [f"{plan.trials} trials of learning rates"] if plan.trials else []
    parts += [f"{plan.timings} timings of steps"] if plan.timings else []
    return f"\n  Not counted: {' and '.join(parts)}." if parts else ""


def _run(run: RunEstimate) -> str:
    name = f"    {run.strategy + (f' s{run.seed}' if run.seed else '') + ('*' if run.probed else ''):<19}"
    if run.memory_bytes is None:
        return name + _usage(run.usage)
    return (
        f"{name}{_count(run.trainable_parameters):>9}{_size(run.loading_bytes or 0):>10}{_size(run.memory_bytes):>9}"
        f"{_time(run.training_seconds):>11}{_time(run.captioning_seconds):>12}"
    )


def _usage(usage: Usage | None) -> str:
    if usage is None:
        return "unknown: needs the data, or the weights"
    price = "price not set" if usage.usd is None else f"up to {usage.usd:.2f} USD"
    tokens = usage.input_tokens + usage.output_tokens
    return f"{usage.requests:,} requests, up to {tokens:,} tokens, {price}"


def _size(value: float) -> str:
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1e9:
        return f"{value / 1e9:.2f}B"
    return f"{value / 1e6:.2f}M" if value >= 1e5 else f"{value:,.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"
