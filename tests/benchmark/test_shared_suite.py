"""Suites survive: shared by harnesses, stopped, killed, and on a disk that is full or cannot be written."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest
from chaos_suite import chaos

from medgraft.benchmark import read_records
from medgraft.cli.main import main

SUITE = """
name = "shared"
backbones = ["blip:{base}"]
strategies = {strategies}
seeds = {seeds}
data = {{ name = "roco", path = "{data}", max_images = 6 }}
metrics = ["bleu"]
[train]
max_steps = {steps}
per_device_train_batch_size = 2
save_steps = 4
[generation]
max_new_tokens = 4
[saliency]
maps = 0
"""


@pytest.fixture
def bench(blip_folder, phantoms_folder, tmp_path):
    """Starts `medgraft bench` on a suite of these settings, with what it prints in a file."""

    def start(name="harness", steps=12, strategies=("lora",), seeds=(0,), **options):
        path = tmp_path / "shared.toml"
        values = {"base": blip_folder, "data": phantoms_folder, "steps": steps, "strategies": json.dumps(strategies)}
        path.write_text(SUITE.format(**values, seeds=json.dumps(seeds)))
        command = [sys.executable, "-m", "medgraft", "bench", str(path), "--out", str(tmp_path / "out")]
        with (tmp_path / name).open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, **options)

    return start


def _wait_for(path, text, seconds=200):
    deadline = time.monotonic() + seconds
    while not re.search(text, path.read_text()):
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_two_harnesses_share_a_folder(bench, tmp_path):
    harnesses = [bench(name, strategies=("lora", "bitfit"), seeds=(0, 1, 2)) for name in ("one", "two")]
    assert [harness.wait(400) for harness in harnesses] == [0, 0]
    logs = [(tmp_path / name).read_text() for name in ("one", "two")]
    begun = [re.findall(r"^\[./6\] .* seed \d$", log, re.MULTILINE) for log in logs]
    assert len({*begun[0], *begun[1]}) == len(begun[0]) + len(begun[1]) == 6
    assert all(begun), "one did all"
    for log, other in zip(logs, reversed(harnesses), strict=True):
        assert f"left to process {other.pid} on " in log and f"done by process {other.pid} on " in log
        assert "mean of 3 seeds" in log and "lora " in log and "bitfit " in log
    records = [record for record in read_records(tmp_path / "out") if record.backbone != "baseline"]
    assert [record.steps for record in records] == [12] * 6
    assert any(record.disturbed for record in records)
    assert not list((tmp_path / "out/records").glob("*.lease"))


@pytest.mark.slow
def test_a_suite_that_is_stopped_shows_what_is_done_and_goes_on_from_there(bench, tmp_path):
    kind = signal.SIGINT  # SIGTERM is among the signals of the last test here
    harness = bench(strategies=("zero-shot", "lora"), steps=3000)
    _wait_for(tmp_path / "harness", r"training: +\d+%.*1\d\d/3000")
    family = psutil.Process(harness.pid).children(recursive=True)
    harness.send_signal(kind)
    assert harness.wait(150) == 128 + kind
    assert not psutil.wait_procs(family, timeout=60)[1]
    log = (tmp_path / "harness").read_text()
    assert "zero-shot" in log[log.index("strategy ") :] and log.endswith("the same command does the rest.\n")
    assert [record.strategy for record in read_records(tmp_path / "out")] == ["zero-shot"]
    (checkpoint,) = (tmp_path / "out").glob("runs/*/.medgraft-checkpoints/checkpoint-*")
    step = int(checkpoint.name.partition("-")[2])
    assert step > 100
    harness = bench("again", strategies=("zero-shot", "lora"), steps=3000)
    _wait_for(tmp_path / "again", r"training: +\d+%.* \d+/3000")
    first = re.search(r"(\d+)/3000", (tmp_path / "again").read_text())
    assert "zero-shot seed 0: done before" in (tmp_path / "again").read_text()
    harness.kill()
    harness.wait()
    assert int(first[1]) >= step


@pytest.mark.exhaustive
def test_a_full_disk_is_one_line_and_a_record_that_was_cut_off_is_none(bench, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # a record fits, an adapter does not

    harness = bench(strategies=("zero-shot", "lora", "bitfit"), preexec_fn=limit)
    assert harness.wait(200) == 2
    log = (tmp_path / "harness").read_text()
    assert log.splitlines()[-1].endswith("a file may not become so large. What was finished is kept.")
    assert "Traceback" not in log and "bitfit" not in log
    assert [record.strategy for record in read_records(tmp_path / "out")] == ["zero-shot"]
    (path,) = (tmp_path / "out/records").iterdir()
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:300])  # as a machine that loses power leaves it
    assert bench("again", strategies=("zero-shot", "lora")).wait(200) == 0
    assert f"{path.name} is damaged, so its run is done again" in (tmp_path / "again").read_text()
    assert json.loads(path.read_text())["metrics"] == whole["metrics"]


def test_a_folder_that_cannot_be_written_is_told_before_the_data_are_read(tmp_path, capsys):
    suite = tmp_path / "s.toml"
    suite.write_text('name = "s"\nbackbones = ["blip-nano"]\nstrategies = ["lora"]\ndata = "roco:/nowhere"\n')
    (tmp_path / "file").touch()
    for out in ("/proc/results", tmp_path / "file"):
        assert main(["bench", str(suite), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("medgraft: Nothing can be written to ") and "Name another folder" in line


@pytest.mark.slow
def test_a_run_ends_with_the_fork_server(bench, tmp_path):
    harness = bench(strategies=("lora", "zero-shot"), steps=100_000)
    _wait_for(tmp_path / "harness", r"training: +\d+%.* \d+/100000")
    (run,) = [
        child
        for child in psutil.Process(harness.pid).children(recursive=True)
        if child.ppid() != harness.pid and child.cpu_times().user > 0.1
    ]
    os.kill(run.ppid(), signal.SIGKILL)
    assert harness.wait(200) == 1
    assert not run.is_running()
    by_strategy = {record.strategy: record.status for record in read_records(tmp_path / "out")}
    assert by_strategy["lora"] == "failed" and by_strategy["zero-shot"] == "ok"


@pytest.mark.exhaustive
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path):
    chaos(tmp_path, kills=2, seed=1)
