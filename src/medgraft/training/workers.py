"""Processes that make batches while a step runs: how many, and what has to be so while they are started."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medgraft import hardware

PREFETCH_FACTOR = 2  # batches that each worker has ready
_MOST = 8
_SHARED_MEMORY = Path("/dev/shm")  # where workers put their batches, on Linux
_SILENT = "TOKENIZERS_PARALLELISM"


def worker_count(device: torch.device, batch_bytes: int) -> int:
    """How many processes should make batches of `batch_bytes`: as many as cores and shared memory allow.

    For accelerators on Linux, where a worker is a fork of this process; elsewhere none.
    """
    if device.type == "cpu" or sys.platform != "linux":
        return 0
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else sys.maxsize
    fitting = free // max(batch_bytes, 1) // (PREFETCH_FACTOR + 1)  # and one under way
    return max(0, min(_MOST, hardware.cores_per_process(), fitting))


@contextmanager
def forking(count: int) -> Iterator[None]:
    """Let `count` workers be forked inside the block without a warning of tokenizers, which then run on one thread."""
    if not count or _SILENT in os.environ:
        yield
        return
    os.environ[_SILENT] = "false"
    try:
        yield
    finally:
        os.environ.pop(_SILENT, None)


def batch_bytes(sample: Mapping[str, torch.Tensor], batch_size: int) -> int:
    """What a batch takes, from a batch of one."""
    return batch_size * sum(tensor.nbytes for tensor in sample.values())


def stop_workers(loader: Any) -> None:
    """End the persistent workers of a DataLoader, or of accelerate's around one, now and not when it is garbage."""
    iterator = getattr(getattr(loader, "base_dataloader", loader), "_iterator", None)
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
