"""Rows of a check: each run by itself, timed, within a budget; what it found or how it broke; one record and one table."""

from __future__ import annotations

import json
import shutil
import signal
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch

WIDTH = 100  # of the table, in columns


@dataclass(frozen=True)
class Outcome:
    """Whether a row passed, in words of one line, and everything measured."""

    passed: bool
    text: str
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One row: `run` does it, in at most `limit` seconds."""

    section: str
    name: str
    run: Callable[[], Outcome]
    limit: float = 60.0


class RowTimeout(Exception):  # noqa: N818 - it is what happened, and no error of the row's
    """A row took longer than it may."""


class Ledger:
    """The record in `path`, written after every row, so that whatever ends the process leaves what was found.

    No row is begun after the budget, and one that is under way is stopped then.
    """

    def __init__(self, path: Path, about: dict[str, Any], budget_seconds: float):
        self.path = path
        started = psutil.Process().create_time()  # imports are in the budget too
        self.content: dict[str, Any] = {**about, "started": started, "budget_seconds": budget_seconds, "rows": []}
        self.lost = False  # whether CUDA can no more be used by this process

    @classmethod
    def going_on(cls, path: Path) -> Ledger:
        """The ledger of an earlier process of the same check."""
        ledger = cls(path, {}, 0)
        ledger.content = json.loads(path.read_text(encoding="utf-8"))
        return ledger

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        rows: list[dict[str, Any]] = self.content["rows"]
        return rows

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return float(self.content["budget_seconds"] - (time.time() - self.content["started"]))

    def do(self, check: Check) -> None:
        """Run a row that has not been run, unless the budget is used up."""
        if any((row["section"], row["name"]) == (check.section, check.name) for row in self.rows):
            return
        row: dict[str, Any] = {"section": check.section, "name": check.name, "seconds": 0.0, "traceback": None}
        if self.left <= 0:
            row |= {"status": "not run", "text": "the budget was used up", "measured": {}}
        else:
            start = time.perf_counter()
            try:
                with _limited(min(check.limit, self.left)):
                    outcome = check.run()
                row |= {"status": "passed" if outcome.passed else "FAILED", "text": outcome.text}
                row["measured"] = outcome.measured
            except Exception as error:  # whatever it is: the other rows are to be run
                told = (str(error).strip().splitlines() or [""])[0]
                row |= {"status": "ERROR", "text": f"{type(error).__name__}: {told}", "measured": {}}
                row["traceback"] = traceback.format_exc()
                self.lost = not _cuda_works()
            row["seconds"] = round(time.perf_counter() - start, 2)
        self.rows.append(row)
        self.write()
        print(_line(row)[0], flush=True)

    def write(self) -> None:
        """Write the record at once or not at all."""
        self.content["seconds"] = round(time.time() - self.content["started"], 1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1, default=str) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def passed(self) -> bool:
        """Whether every row was run and passed."""
        return all(row["status"] == "passed" for row in self.rows)

    def table(self) -> str:
        """All rows, and the seconds of each section."""
        lines = ["=" * WIDTH, *(line for row in self.rows for line in _line(row)), "-" * WIDTH]
        seconds: dict[str, float] = {}
        for row in self.rows:
            seconds[row["section"]] = seconds.get(row["section"], 0.0) + row["seconds"]
        lines += textwrap.wrap("seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in seconds.items()), WIDTH)
        states = [row["status"] for row in self.rows]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return "\n".join([*lines, f"{counts}; {self.content['seconds']} s in all; record in {self.path}"])


def _line(row: dict[str, Any]) -> list[str]:
    head = f"{row['status']:<8}{row['section'] + ': ' + row['name']:<35.35}{row['seconds']:6.1f} s  "
    text = textwrap.wrap(row["text"], WIDTH - len(head), max_lines=3, placeholder=" ...") or [""]
    return [head + text[0], *(" " * len(head) + line for line in text[1:])]


def _cuda_works() -> bool:
    """False after errors that only a new process gets rid of."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.ones(2, device="cuda").sum().item()
    except RuntimeError:
        return False
    return True


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def end(signum: int, frame: FrameType | None) -> None:
        raise RowTimeout(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, 2)  # again, as an exception raised in a destructor is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def remove(folder: Path) -> None:
    """Remove a folder if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
