"""Runs as SLURM jobs, or as processes here, by submitit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import submitit
import torch

from medgraft.errors import ConfigError, first_line
from medgraft.executor_config import ExecutorConfig
from medgraft.executors import Needs, Submission

_MINUTES = 24 * 60  # submitit's own limit is five


class SubmititExecutor:
    """See medgraft.executors.Executor."""

    def __init__(self, settings: ExecutorConfig, folder: Path) -> None:
        self._cluster = settings.cluster
        self.workers = None if settings.cluster == "slurm" else max(1, (os.cpu_count() or 1) // settings.cpus)
        self.has_gpus = torch.accelerator.is_available()
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=settings.cluster)
            self._executor.update_parameters(timeout_min=_MINUTES, **settings.options)
        except (RuntimeError, NameError, TypeError) as error:
            hint = " executor.cluster=local does without SLURM." if settings.cluster == "slurm" else ""
            raise ConfigError(f"submitit cannot use {settings.cluster}: {first_line(error)}{hint}") from None

    def submit(self, call: Callable[[], Any], needs: Needs) -> Submission:
        """See Executor."""
        if needs.gpus != int(needs.gpus):
            raise ConfigError(f"executor.gpus={needs.gpus:g}: submitit gives a run whole GPUs; Ray can share them.")
        self._executor.update_parameters(
            gpus_per_node=int(needs.gpus), cpus_per_task=needs.cpus, mem_gb=max(1, round(needs.memory_bytes / 2**30 + 0.5))
        )
        submission: Submission = self._executor.submit(call)
        return submission

    def close(self) -> None:
        """See Executor."""

    def __str__(self) -> str:
        return f"submitit ({self._cluster})"
