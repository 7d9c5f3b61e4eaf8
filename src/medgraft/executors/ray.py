"""Runs as tasks of a Ray cluster, which its own scheduler places."""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from medgraft.errors import ConfigError, first_line
from medgraft.executor_config import ExecutorConfig
from medgraft.executors import Needs, Submission


class RayExecutor:
    """See medgraft.executors.Executor."""

    workers: int | None = None

    def __init__(self, settings: ExecutorConfig, folder: Path) -> None:
        self._owned = not ray.is_initialized()
        own = (
            {}
            if settings.address
            else {"num_cpus": settings.workers and settings.workers * settings.cpus, "include_dashboard": False}
        )
        before = signal.getsignal(signal.SIGTERM)
        try:
            if self._owned:
                _reach(settings.address or "")
                ray.init(settings.address or "local", log_to_driver=False, configure_logging=False, **own)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"Ray cannot use executor.address={settings.address}: {first_line(error)}") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler exits without a word
        self.has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        self._where = settings.address or "a cluster on this machine"
        self._options = {"max_retries": 0, **settings.options}

    def submit(self, call: Callable[[], Any], needs: Needs) -> Submission:
        """See Executor."""
        asked = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "memory": needs.memory_bytes}
        try:
            task = ray.remote(_do).options(**asked, **self._options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"executor.options: {first_line(error)}") from None
        return _Submitted(task.remote(call))

    def close(self) -> None:
        """See Executor."""
        if self._owned:
            ray.shutdown()

    def __str__(self) -> str:
        return f"ray ({self._where})"


class _Submitted:
    def __init__(self, ref: Any):
        self._ref = ref

    def done(self) -> bool:
        return bool(ray.wait([self._ref], timeout=0, fetch_local=False)[0])

    def result(self) -> Any:
        return ray.get(self._ref)

    def cancel(self) -> None:
        ray.cancel(self._ref)


def _reach(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT, for which Ray would wait minutes."""
    if found := re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address):
        socket.create_connection((found[1], int(found[2])), timeout=20).close()


def _do(call: Callable[[], Any]) -> Any:
    return call()
