"""Kill trainings (kill -9) at random moments, go on with each, and compare the adapters with one that was never killed.

    python tests/training/chaos_training.py --kills 50

It needs Linux. Every run is a fork of this process, which has imported the libraries, so that kills hit the training.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from medgraft.adapter import IN_RUN
from medgraft.benchmark.record import RECORD
from medgraft.benchmark.run_folder import CHECKPOINTS
from medgraft.cli.main import main as medgraft
from medgraft.data.phantoms import write_phantoms


def call(words: list[str], seconds: float | None = None) -> int | None:
    """The exit code of a medgraft command in a fork of this process; None if it was killed, after `seconds`."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(medgraft(words))
        finally:
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def moment(out: Path) -> str:
    """What the run in `out` was doing when it was killed, as far as its files tell."""
    if (out / RECORD).is_file():
        return "after the record"
    if any(out.glob(".adapter.medgraft-*")):
        return "writing the adapter"
    if (out / IN_RUN).is_dir():
        return "after the adapter"
    if any((out / CHECKPOINTS).glob(".new-*")):
        return "writing a checkpoint"
    return "between checkpoints" if any((out / CHECKPOINTS).glob("checkpoint-*")) else "before the first checkpoint"


def adapter(out: Path) -> dict[str, bytes]:
    """The bytes of an adapter's weights and of PEFT's settings."""
    return {
        path.name: path.read_bytes() for path in (out / IN_RUN).iterdir() if path.name not in ("README.md", "medgraft.json")
    }


def chaos(kills: int, words: list[str], work: Path, seed: int = 0) -> tuple[int, Counter[str]]:
    """Kill `kills` trainings of the command `words`; how many ended in the same adapter, and the moments of the kills."""
    whole, chance, moments, same = work / "whole", random.Random(seed), Counter[str](), 0
    start = time.monotonic()
    assert call([*words, "--out", str(whole)]) == 0
    usual = time.monotonic() - start
    while moments.total() < kills:
        out = work / "killed"
        more: list[str] = []
        if call([*words, "--out", str(out)], chance.uniform(0, usual)) is None:
            moments[moment(out)] += 1
            if not (out / RECORD).is_file():
                more = ["--resume"] if any((out / CHECKPOINTS).glob("checkpoint-*")) else []
                assert call([*words, "--out", str(out), *more]) == 0, f"it does not go on: {sorted(out.rglob('*'))}"
            same += adapter(out) == adapter(whole) and not any(out.glob(".adapter.medgraft-*"))
            print(f"{same} of {moments.total()}", end="\r", file=sys.stderr)
        shutil.rmtree(out, ignore_errors=True)
    return same, moments


def command(work: Path) -> list[str]:
    """The command line of a short training with a checkpoint after every second step, but for --out."""
    write_phantoms(work / "data", count=24, seed=5)
    base = work / "base"
    assert call(["tiny-models", str(base), "blip"]) == 0
    overrides = ("train.per_device_train_batch_size=2", "train.save_steps=2", "train.bf16=false", "train.num_train_epochs=8")
    settings = [word for override in overrides for word in ("--set", override)]
    data = ["--data", f"roco:{work / 'data'}", "--max-images", "8", "--no-eval", "-q"]
    return ["train", "--backbone", f"blip:{base / 'blip'}", "--strategy", "lora", *data, *settings]


def main() -> int:
    """Print how many of the killed trainings ended in the same adapter; 1 if one did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("MEDGRAFT_DEVICE", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        same, moments = chaos(arguments.kills, command(Path(folder)), Path(folder), arguments.seed)
    print(f"{same} of {arguments.kills} adapters are bit-identical")
    for name, count in moments.most_common():
        print(f"{count:4} killed {name}")
    return int(same < arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
