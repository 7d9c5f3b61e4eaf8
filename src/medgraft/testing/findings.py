"""Runs checks, plain functions that raise, and collects their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from medgraft.errors import MedgraftError


class ConformanceError(AssertionError):
    """A broken contract; the message lists every check that failed."""


@dataclass(frozen=True)
class Finding:
    """The result of one check of one subject; `problem` is None if it passed."""

    subject: str
    check: str
    problem: str | None = None


def run_checks(subject: str, checks: Iterable[Callable[[], None]]) -> Iterator[Finding]:
    """Run each check, named by the first line of its docstring."""
    for check in checks:
        name = (check.__doc__ or check.__name__).splitlines()[0].rstrip(".")
        try:
            check()
        except Exception as error:  # a failed check may raise anything
            message = " ".join(str(error).split()) or "no message"
            kind = "" if isinstance(error, AssertionError | MedgraftError) else f"{type(error).__name__}: "
            yield Finding(subject, name, f"{kind}{message}"[:600])
        else:
            yield Finding(subject, name)


def require(findings: Iterable[Finding]) -> None:
    """ConformanceError if any check failed."""
    failed = [f"{f.subject}: {f.check}: {f.problem}" for f in findings if f.problem is not None]
    if failed:
        raise ConformanceError("\n".join(failed))
