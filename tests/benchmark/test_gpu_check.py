"""benchmarks/gpu/check.py at its small size, and the parts of it that a run without faults never shows."""

import importlib
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    return importlib.import_module


@pytest.mark.exhaustive
def test_every_row_passes_at_the_small_size(tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, str(GPU / "check.py"), "--small", "--out", str(record), "--budget-seconds", "800"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=820, env=dict(os.environ))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert max(map(len, done.stdout.partition("=====")[2].splitlines()[1:-1])) <= 100
    content = json.loads(record.read_text(encoding="utf-8"))
    rows = {(row["section"], row["name"]): row for row in content["rows"]}
    assert {row["status"] for row in rows.values()} == {"passed"}
    sections = {"setup", "preset", "quantised", "features", "as on CPU", "resume", "profile", "maps", "captions", "tiny"}
    assert {section for section, _ in rows} == sections
    assert rows["quantised", "qlora"]["measured"]["kinds"] == ["Linear4bit"]
    assert rows["quantised", "lora-int8"]["measured"]["kinds"] == ["Linear8bitLt"]
    assert rows["resume", "killed and resumed"]["measured"]["exit_code_of_killed"] == -9
    assert rows["profile", "lora"]["measured"]["profile"]["operators"]


def test_a_broken_row_leaves_its_traceback_and_the_next_is_run(tmp_path, module, capsys):
    ledger = module("ledger")
    book = ledger.Ledger(tmp_path / "record.json", {"git": "abc"}, 10_000)

    def breaks():
        raise ValueError("no such thing\nat all")

    book.do(ledger.Check("one", "breaks", breaks))
    book.do(ledger.Check("one", "hangs", lambda: time.sleep(60), limit=0.2))
    book.do(ledger.Check("two", "differs", lambda: ledger.Outcome(False, "1 is not 2", {"x": 1})))
    book.do(ledger.Check("two", "is right", lambda: ledger.Outcome(True, "1 is 1", {})))
    book.content["budget_seconds"] = 0
    book.do(ledger.Check("two", "comes late", lambda: ledger.Outcome(True, "", {})))
    rows = ledger.Ledger.going_on(tmp_path / "record.json").rows
    assert [row["status"] for row in rows] == ["ERROR", "ERROR", "FAILED", "passed", "not run"]
    assert "in breaks" in rows[0]["traceback"]
    assert rows[0]["text"] == "ValueError: no such thing"
    assert rows[1]["text"].startswith("RowTimeout")
    assert rows[1]["seconds"] < 5
    assert not book.passed()
    assert "2 ERROR, 1 FAILED, 1 passed, 1 not run" in book.table()
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_ledger_that_goes_on_leaves_what_was_done(tmp_path, module):
    ledger = module("ledger")
    ledger.Ledger(tmp_path / "r.json", {}, 10_000).do(ledger.Check("one", "row", lambda: ledger.Outcome(True, "first")))
    book = ledger.Ledger.going_on(tmp_path / "r.json")
    book.do(ledger.Check("one", "row", lambda: ledger.Outcome(True, "second")))
    assert [row["text"] for row in book.rows] == ["first"]


def test_waits_are_counted_by_the_line_that_asks(module, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    watch = module("watch").Watch(1, 1, 1, 1)
    watch.cuda = True

    def asks():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    with watch._counting_waits():
        for _ in range(2):
            asks()
        warnings.warn("something else", stacklevel=1)
    ((where, count),) = watch._waits.items()
    assert count == 2
    assert "test_gpu_check.py" in where[-1]
    assert " asks:" in where[-1]
    assert modes == ["warn", "default"]
