"""Leases: one owner for each run, until it is dead; on this machine at once, on another when it does not answer."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

import medgraft.benchmark.lease as lease_module
from medgraft.benchmark.lease import Lease, LeaseLost, Leases, Owner, begin_run, is_disturbed, is_held, note


@pytest.fixture
def leases(tmp_path):
    return Leases(tmp_path, (tmp_path,), beat_seconds=0.05, dead_seconds=0.3)


@pytest.fixture
def process():
    """Another process of this machine."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process


def _owner_of(process):
    return replace(Owner.this(), pid=process.pid, started=psutil.Process(process.pid).create_time())


def _left_by(owner, folder, number=1, notes=()):
    path = folder / f"run.{number}.lease"
    path.write_text("".join(json.dumps(line) + "\n" for line in (owner.__dict__, *notes)))
    return path


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_has_one_owner_and_its_lease_is_given_back(leases, tmp_path):
    with leases.take("run") as lease:
        assert leases.take("run") == Owner.this()
        assert isinstance(leases.take("other"), Lease)
        assert is_held(lease.path)
    assert _names(tmp_path) == ["other.1.lease"]


def test_a_dead_process_of_this_machine_is_followed_at_once(leases, process, tmp_path):
    owner = _owner_of(process)
    path = _left_by(owner, tmp_path)
    assert leases.take("run") == owner
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    with leases.take("run") as lease:
        assert lease.path.name == "run.2.lease" and not is_held(path)
        (tmp_path / "run.json").touch()
    assert _names(tmp_path) == ["run.json"]


def test_a_run_that_outlives_its_harness_for_a_moment_is_waited_for(leases, process, tmp_path):
    run = _owner_of(process)
    dead = replace(run, pid=2**22 + 1)
    _left_by(dead, tmp_path, notes=[{"run": run.pid, "started": run.started}])
    assert leases.take("run") == dead
    process.kill()
    process.wait()
    assert isinstance(leases.take("run"), Lease)


def test_a_run_that_begins_after_its_lease_was_followed_stops(leases, process, tmp_path):
    path = _left_by(replace(_owner_of(process), pid=2**22 + 1), tmp_path)
    begin_run(path)
    assert json.loads(path.read_text().splitlines()[1])["run"] == os.getpid()
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with leases.take("run"), pytest.raises(LeaseLost):
        begin_run(path)


@pytest.mark.parametrize("content", ["elsewhere", "reused", "empty"])
def test_who_cannot_be_asked_is_dead_when_it_does_not_answer(content, leases, process, tmp_path):
    """On another machine; a later process with the same number; killed while it wrote the lease."""
    owner = _owner_of(process)
    owner = replace(owner, host="node7", machine="node7") if content == "elsewhere" else replace(owner, started=1.0)
    path = _left_by(owner, tmp_path)
    if content == "empty":
        path.write_text("")
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:  # it answers
        os.utime(path)
        found = leases.take("run")
        assert isinstance(found, Owner)
        time.sleep(0.05)
    assert str(found) == {"elsewhere": f"process {process.pid} on node7"}.get(content, str(found))
    time.sleep(0.5)
    assert isinstance(leases.take("run"), Lease)


def test_a_lease_in_use_answers_and_a_clock_that_is_wrong_does_not_matter(leases, tmp_path):
    with leases.take("run") as lease:
        first = lease.path.stat().st_mtime_ns
        os.utime(lease.path, (1.0, 1.0))
        deadline = time.monotonic() + 5
        while lease.path.stat().st_mtime_ns < first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lease.path.stat().st_mtime_ns > first


def test_an_owner_that_was_taken_for_dead_leaves_the_lease_of_its_successor(leases, tmp_path):
    with leases.take("run") as lease:
        successor = _left_by(replace(Owner.this(), host="node7", machine="node7"), tmp_path, number=2)
        assert not is_held(lease.path)
    assert successor.is_file()


def test_runs_side_by_side_on_one_machine_are_disturbed(leases, process, tmp_path):
    other = _left_by(_owner_of(process), tmp_path)
    elsewhere = tmp_path / "far.1.lease"
    elsewhere.write_text(json.dumps(replace(Owner.this(), machine="node7").__dict__))
    with leases.take("mine") as lease:
        assert not is_disturbed(lease.path)
        leases.begin(lease.path)
        assert is_disturbed(lease.path) and is_disturbed(other) and not is_disturbed(elsewhere)


def test_what_dead_harnesses_left_is_removed(leases, process, tmp_path):
    _left_by(replace(_owner_of(process), pid=2**22 + 1), tmp_path)
    (tmp_path / ".run.json.1234.tmp").touch()
    (tmp_path / ".other.json.1234.tmp").touch()
    (tmp_path / "run.json").touch()
    leases.clear("run")
    assert _names(tmp_path) == [".other.json.1234.tmp", "run.json"]
    note(tmp_path / "run.1.lease", beside=True)  # makes no new file
    assert not (tmp_path / "run.1.lease").exists()


_MANY = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("lease", sys.argv[2])  # without torch, which the package imports
lease = sys.modules["lease"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lease)
leases = lease.Leases(Path(sys.argv[1]))
input()
for run in range(40):
    taken = leases.take(str(run))
    if isinstance(taken, lease.Lease):
        with taken:
            record = Path(sys.argv[1]) / f"{run}.json"
            if not record.exists():
                with Path(sys.argv[1], f"{run}.done").open("a") as file:
                    file.write("once ")
                record.touch()
"""


@pytest.mark.slow
def test_many_processes_do_each_run_once(process, tmp_path):
    for run in range(0, 40, 2):  # every other one was left by a dead harness, and all find it at the same time
        owner = replace(_owner_of(process), pid=2**22 + 1)
        (tmp_path / f"{run}.1.lease").write_text(json.dumps(owner.__dict__))
    command = [sys.executable, "-c", _MANY, str(tmp_path), lease_module.__file__]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(4)]
    for each in processes:
        each.stdin.write("go\n")
        each.stdin.close()
    assert [each.wait(120) for each in processes] == [0] * 4
    assert [(tmp_path / f"{run}.done").read_text() for run in range(40)] == ["once "] * 40
    assert not list(tmp_path.glob("*.lease"))
