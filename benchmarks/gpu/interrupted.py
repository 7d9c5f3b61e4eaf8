"""A training that is killed after its first checkpoint and resumed, beside one that is left alone.

`python interrupted.py WORK STEPS` is started by check.py; leaves `interrupted.json` in WORK.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from medgraft.adapter import locate_adapter
from medgraft.benchmark.record import RECORD
from medgraft.benchmark.run_folder import CHECKPOINTS, has_package

_LIMIT = 150.0  # seconds for a process


def start(work: Path, out: Path, steps: int, *more: str) -> subprocess.Popen[str]:
    """`medgraft train` of the small BLIP in WORK, in the background."""
    command = [
        sys.executable, "-m", "medgraft", "train", "--backbone", f"blip:{work / 'little'}", "--strategy", "lora",
        "--data", f"roco:{work / 'phantoms'}", "--max-images", "12", "--batch-size", "4", "--out", str(out), "--no-eval",
        "--max-steps", str(steps), "--set", f"train.save_steps={steps // 8}", *more,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for its end; RuntimeError with what it printed unless that was a good one."""
    _, errors = process.communicate(timeout=_LIMIT)
    if process.returncode:
        raise RuntimeError(f"medgraft train ended with {process.returncode}:\n{errors[-4000:]}")


def kill_after_checkpoint(process: subprocess.Popen[str], out: Path) -> str:
    """SIGKILL as soon as a checkpoint is whole; its name."""
    end = time.monotonic() + _LIMIT
    while time.monotonic() < end:
        whole = sorted((out / CHECKPOINTS).glob("checkpoint-*/trainer_state.json"))
        if whole:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return whole[0].parent.name
        if process.poll() is not None:
            finish(process)
            raise RuntimeError("the training ended before its first checkpoint was seen")
        time.sleep(0.002)
    process.kill()
    raise RuntimeError(f"no checkpoint after {_LIMIT:.0f} s")


def record_of(out: Path) -> dict[str, Any]:
    """The record that a training left."""
    found: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    return found


def compare(work: Path, steps: int) -> dict[str, Any]:
    """Do all three and compare losses and adapters."""
    whole, killed = work / "whole", work / "killed"
    alone, victim = start(work, whole, steps), start(work, killed, steps)
    checkpoint = kill_after_checkpoint(victim, killed)
    left = sorted(path.name for path in (killed / CHECKPOINTS).iterdir())
    packaged = has_package(killed)
    finish(start(work, killed, steps, "--resume"))
    finish(alone)
    losses = [record_of(out)["train_loss"] for out in (whole, killed)]
    one, other = (load_file(locate_adapter(out) / "adapter_model.safetensors") for out in (whole, killed))
    return {
        "killed_after": checkpoint,
        "checkpoints_left": left,
        "was_packaged_when_killed": packaged,
        "exit_code_of_killed": victim.returncode,
        "steps": [len(x) for x in losses],
        "last_losses": [x[-1] for x in losses],
        "loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "adapter_difference": max(float((one[name] - other[name]).abs().max()) for name in one),
        "adapter_size": max(float(tensor.abs().max()) for tensor in one.values()),
    }


def main() -> None:
    """Write the answer, or the traceback."""
    work, steps = Path(sys.argv[1]), int(sys.argv[2])
    try:
        answer: dict[str, Any] = {"value": compare(work, steps)}
    except Exception:  # it is told in the row that wants this answer
        answer = {"error": traceback.format_exc()}
    temporary = work / f"interrupted.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(answer), encoding="utf-8")
    temporary.replace(work / "interrupted.json")


if __name__ == "__main__":
    main()
