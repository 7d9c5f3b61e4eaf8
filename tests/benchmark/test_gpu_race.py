"""The race on a GPU, at the size that a CPU does, and the tables from its record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """The record of a race with a strategy that medgraft does not know, and what was printed."""
    out = tmp_path_factory.mktemp("race") / "race.json"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "gpu" / "race.py"), "--small", "--workers", "1", "--out", str(out),
        "--strategies", "no-such-strategy", "encoder-frozen",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text(encoding="utf-8")), done.stdout


@pytest.mark.slow
def test_both_sides_do_the_same_work(race):
    record, _ = race
    runs = record["runs"]["encoder-frozen"]
    assert set(runs) == {"trainer", "medgraft", "tutorial"}
    for run in runs.values():
        assert len(run["step_seconds"]) == run["epochs"] * record["steps_an_epoch"]
        assert run["losses"][0] == pytest.approx(runs["trainer"]["losses"][0], rel=1e-3)
    assert runs["tutorial"]["losses"] == runs["trainer"]["losses"][:4]  # the same images in the same order
    assert runs["medgraft"]["build_seconds"] > 0
    assert runs["medgraft"]["same_captions"] == 1
    assert runs["trainer"]["step_flops"] > runs["medgraft"]["step_flops"] > 0  # which has no tower in it
    assert record["not_run"] == []


@pytest.mark.slow
def test_a_side_that_failed_is_started_anew(race):
    record, printed = race
    error = record["runs"]["no-such-strategy"]["medgraft"]["error"]
    assert error.startswith("UnknownNameError") and f"no-such-strategy, medgraft: {error}" in printed
    assert "error" not in record["runs"]["encoder-frozen"]["medgraft"]


@pytest.mark.slow
def test_tables_have_every_run(race, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu.table import gpu_details, gpu_table

    record, printed = race
    path = tmp_path / "race.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    table = gpu_table(path)
    assert table in printed
    rows = [line for line in table.splitlines() if line.startswith("| encoder-frozen |")]
    trainer, medgraft = (record["runs"]["encoder-frozen"][side]["step_seconds"] for side in ("trainer", "medgraft"))
    ratio = sorted(trainer[3:])[1] / sorted(medgraft[3:])[1]  # two steps an epoch, three discarded
    assert len(rows) == 1 and f"**{ratio:.1f}x**" in rows[0]
    details = gpu_details(path)
    assert details.count("\n| encoder-frozen |") == 3 and "| no-such-strategy | medgraft | failed |" in details


def test_without_a_record_there_is_no_table(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu.table import gpu_details, gpu_table

    assert gpu_table(tmp_path / "race.json") == gpu_details(tmp_path / "race.json") == ""


@pytest.mark.slow
def test_a_side_that_is_killed_is_told_and_started_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu.race import Side

    side = Side("trainer", tmp_path)
    try:
        assert "ready" in side.ready(300)
        side.process.kill()
        assert "exit status -9" in side.do({}, 300)["error"]
        assert side.do({}, 300) == {"error": "KeyError: 'seed'"}  # a new one read the job
    finally:
        side.stop()
