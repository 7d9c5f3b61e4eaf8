"""What both sides of a race share: where they compute, how steps are timed there, and doing job after job in one process."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, trainer


def device() -> torch.device:
    """The GPU if there is one; MEDGRAFT_DEVICE=cpu keeps both sides on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and os.environ.get("MEDGRAFT_DEVICE") != "cpu" else "cpu")


@contextmanager
def device_steps(seconds: list[float]) -> Iterator[None]:
    """`seconds` gets the time between the ends of the steps of every transformers.Trainer in the block, as a GPU has it.

    The GPU notes the time itself, so that the loop waits for nothing. On a CPU `seconds` stays empty.
    """
    if device().type != "cuda":
        yield
        return
    events: list[torch.cuda.Event] = []

    class Events(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()

        on_step_end = on_train_begin

    trainer.DEFAULT_CALLBACKS.append(Events)
    try:
        yield
    finally:
        trainer.DEFAULT_CALLBACKS.remove(Events)
    torch.cuda.synchronize()
    seconds += [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]


def peak_memory_bytes() -> int:
    """The GPU's highest allocation since the job began; the process's highest resident set without a GPU."""
    if device().type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def main(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """`SCRIPT JOB.json` does one job and prints its result; `SCRIPT serve` does those whose files stdin names, a line each."""
    if sys.argv[1] == "serve":
        _serve(run)
    else:
        print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))


def _serve(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """One JSON line for each job, after a first one at the start; whatever else is printed goes to stderr.

    A job that fails ends the process, since a GPU error leaves its state behind.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if device().type == "cuda":
        torch.zeros(1, device="cuda")  # the context
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    for line in sys.stdin:
        before = _forget()
        try:
            result = run(json.loads(Path(line.strip()).read_text(encoding="utf-8")))
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}), file=answers, flush=True)
            sys.exit(1)
        _forget()
        print(json.dumps({**result, "memory_before_bytes": before}), file=answers, flush=True)


def _forget() -> int:
    """Free what the last job left behind; how much of the GPU's memory is in use after that."""
    gc.collect()
    if device().type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())
