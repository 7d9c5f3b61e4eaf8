"""Runs checks, plain functions that raise, and collects their results."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medgraft.errors import MedgraftError
from medgraft.testing.advice import Kind, advice

_OWN = str(Path(__file__).parents[1])


class ConformanceError(AssertionError):
    """A broken contract; the message lists every check that failed."""


@dataclass(frozen=True)
class Finding:
    """The result of one check of one subject; `problem` is None if it passed, else `implement` says what decides it."""

    subject: str
    check: str
    problem: str | None = None
    implement: str | None = None


def run_checks(subject: str, kind: Kind, checks: Iterable[Callable[[], None]]) -> Iterator[Finding]:
    """Run each check of a plugin's `kind`, named by the first line of its docstring."""
    for check in checks:
        implement = advice(kind, check.__name__)
        name = (check.__doc__ or check.__name__).splitlines()[0].rstrip(".")
        try:
            check()
        except Exception as error:  # a failed check may raise anything
            message = " ".join(str(error).split()) or "no message"
            error_kind = "" if isinstance(error, AssertionError | MedgraftError) else f"{type(error).__name__}: "
            yield Finding(subject, name, f"{error_kind}{message}"[:600] + (_place(error) if error_kind else ""), implement)
        else:
            yield Finding(subject, name)


def _place(error: Exception) -> str:
    """Where an unforeseen error comes from: the last line of the plugin's own code that led to it, if any did."""
    calls = traceback.extract_tb(error.__traceback__)
    own = [call for call in calls if not any(part in call.filename for part in ("site-packages", _OWN, "<frozen"))]
    return f" (line {own[-1].lineno} of {own[-1].filename}: {own[-1].line})" if own else ""


def require(findings: Iterable[Finding]) -> None:
    """ConformanceError if any check failed."""
    failed = [f"{f.subject}: {f.check}: {f.problem} See {f.implement}." for f in findings if f.problem is not None]
    if failed:
        raise ConformanceError("\n".join(failed))
