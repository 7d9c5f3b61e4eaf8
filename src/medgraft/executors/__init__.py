"""Engines that do a suite's runs on other machines: they submit, schedule, and say when a run has ended."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medgraft.errors import ConfigError
from medgraft.executor_config import ExecutorConfig

__all__ = ["ENGINES", "Executor", "Needs", "Submission", "open_executor"]

ENGINES = {
    "submitit": ("medgraft.executors.submitit:SubmititExecutor", "slurm"),
    "ray": ("medgraft.executors.ray:RayExecutor", "ray"),
}  # name -> where it is, and the extra that installs its package


@dataclass(frozen=True)
class Needs:
    """What one run needs: GPUs, cores, bytes of memory."""

    gpus: float
    cpus: int
    memory_bytes: int


class Submission(Protocol):
    """A call that was submitted."""

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""

    def result(self) -> Any:
        """What the call returned; raises what it raised, or the engine's own error if its worker is lost."""

    def cancel(self) -> Any:
        """Stop it: a call that runs gets KeyboardInterrupt, or its process ends."""


class Executor(Protocol):
    """Does calls on workers, which see the folder of results and have medgraft installed."""

    workers: int | None  # most calls at once that make sense, if the engine has no queue of its own
    has_gpus: bool

    def __init__(self, settings: ExecutorConfig, folder: Path) -> None:
        """Connect; the engine's own files go to `folder`. ConfigError if that is not possible."""

    def submit(self, call: Callable[[], Any], needs: Needs) -> Submission:
        """Submit `call`, which can be pickled; it starts once a worker has what it needs."""

    def close(self) -> None:
        """Disconnect, and end what was started for this."""

    def __str__(self) -> str: ...


def open_executor(settings: ExecutorConfig, folder: Path) -> Executor:
    """The executor that `settings` name; ConfigError if its package, or what it is to connect to, is not there."""
    target, extra = ENGINES[settings.name]
    module, _, name = target.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"executor.name={settings.name} needs {error.name}, which is not installed: pip install 'medgraft[{extra}]'"
        ) from None
    executor: Executor = kind(settings, folder)
    return executor
