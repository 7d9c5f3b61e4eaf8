"""Kills harnesses of a small suite at random moments: `python tests/benchmark/chaos_suite.py --kills 20`.

Each time one or two harnesses work on one results folder until one of them is killed, in most cases by SIGKILL. Afterwards
none of its processes may be left, and no finished record may be lost or written again. In the end the suite is started once
more, and its records and adapters are compared with those of a suite that nobody killed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import psutil

from medgraft.benchmark import read_records
from medgraft.data.phantoms import write_phantoms

ROOT = Path(__file__).parents[2]
SUITE = """
name = "chaos"
backbones = ["blip:{base}"]
strategies = ["zero-shot", "lora", "bitfit"]
data = {{ name = "roco", path = "{data}", max_images = 6 }}
metrics = ["bleu", "cider"]
[train]
max_steps = 12
per_device_train_batch_size = 2
save_steps = 3
bf16 = false
[generation]
max_new_tokens = 4
[saliency]
maps = 0
[tuning]
factors = [1.0]
[timing]
repeats = 2
steps = 7
"""
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


def write_suite(folder: Path) -> Path:
    """A suite with a search for learning rates, runs with checkpoints, and timed steps."""
    module = importlib.util.spec_from_file_location("synthetic_models", ROOT / "benchmarks" / "synthetic_models.py")
    synthetic = importlib.util.module_from_spec(module)
    module.loader.exec_module(synthetic)
    base = synthetic.write_blip(folder / "base", layers=1, width=32, image_size=32)
    write_phantoms(folder / "data", count=30, seed=5)
    path = folder / "chaos.toml"
    path.write_text(SUITE.format(base=base, data=folder / "data"))
    return path


class Harnesses:
    """`medgraft bench` in processes of their own, known by a mark in their environment."""

    def __init__(self, suite: Path, out: Path):
        self.suite, self.out, self.log = suite, out, out.with_suffix(".log")

    def start(self) -> tuple[subprocess.Popen[bytes], str]:
        """One more harness, and its mark."""
        mark = uuid4().hex
        command = [sys.executable, "-m", "medgraft", "bench", str(self.suite), "--out", str(self.out)]
        with self.log.open("ab") as log:
            environ = {**os.environ, "MEDGRAFT_CHAOS": mark}
            return subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True), mark

    def finish(self) -> None:
        """Let one harness do what is left."""
        process, mark = self.start()
        assert process.wait(1200) == 0, self.log.read_text()[-4000:]
        assert not left_over(mark, seconds=60)


def left_over(mark: str, seconds: float) -> list[psutil.Process]:
    """The processes with this mark that are still there after some seconds."""
    deadline = time.monotonic() + seconds
    while (found := [process for process in psutil.process_iter() if _has(process, mark)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("MEDGRAFT_CHAOS") == mark
    except psutil.Error:
        return False


def finished(out: Path) -> dict[str, bytes]:
    """Every record by its path, which has to be readable."""
    for folder in (out, out / "tuning", out / "timing"):
        if any((folder / "records").glob("*.json")):
            read_records(folder)
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("**/records/*.json")}


def results(out: Path) -> dict[str, object]:
    """What a record and an adapter have to be, whenever the suite was killed; times differ."""
    found: dict[str, object] = {}
    for folder in (out, out / "tuning", out / "timing"):
        for record in read_records(folder):
            weights = sorted((folder / (record.adapter or "")).glob("adapter/*.safetensors"))
            digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]
            content = (record.status, record.steps, record.train_loss, record.metrics, record.trainable_parameters, digests)
            found[f"{folder.name if folder != out else ''} {record.run_id}"] = content
    return found


def chaos(folder: Path, kills: int, seed: int = 0) -> list[str]:
    """Kill `kills` times, finish, and compare; a line on each kill. AssertionError if anything is lost, doubled or left."""
    suite = write_suite(folder)
    reference = Harnesses(suite, folder / "reference")
    began = time.monotonic()
    reference.finish()
    whole = time.monotonic() - began
    wanted, chance = results(reference.out), random.Random(seed)
    harnesses, before, lines = Harnesses(suite, folder / "killed"), dict[str, bytes](), list[str]()
    for number in range(1, kills + 1):
        several = [harnesses.start() for _ in range(chance.choice((1, 1, 2)))]
        wait, kind = chance.uniform(0.02, 0.6) * whole, chance.choice(_SIGNALS)
        time.sleep(wait)
        for process, mark in several:
            process.send_signal(kind)
            process.wait(200)
            assert not (alive := left_over(mark, seconds=60)), f"kill {number}: {alive}"
        now = finished(harnesses.out)
        changed = [name for name, content in before.items() if now.get(name) != content]
        assert not changed, f"kill {number}: lost or written again: {changed}"
        lines.append(f"kill {number}: {kind.name} of {len(several)} after {wait:.1f} s, {len(now)} records")
        print(lines[-1], flush=True)
        before = now
        if number == kills or len(now) == len(wanted):
            _compare(harnesses, before, wanted)
            harnesses, before = Harnesses(suite, folder / f"killed-{number}"), {}
    return lines


def _compare(harnesses: Harnesses, before: dict[str, bytes], wanted: dict[str, object]) -> None:
    """Do the rest, and compare all with the results `wanted`."""
    harnesses.finish()
    now = finished(harnesses.out)
    assert all(now.get(name) == content for name, content in before.items())
    assert results(harnesses.out) == wanted
    left = [path.name for path in harnesses.out.glob("**/records/*") if path.suffix != ".json"]
    assert not left, left


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = chaos(Path(folder), arguments.kills, arguments.seed)
    print(f"{len(lines)} kills: no record lost, doubled or different, nothing left running.")


if __name__ == "__main__":
    main()
