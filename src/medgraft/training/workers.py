"""Data loader workers: how many to use, and how to fork and stop them."""

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

PREFETCH_FACTOR = 2  # batches that each worker prepares ahead
_MOST = 8
_SHARED_MEMORY = Path("/dev/shm")  # where workers put their batches on Linux
_SILENT = "TOKENIZERS_PARALLELISM"


def worker_count(device: torch.device, batch_bytes: int) -> int:
    """The number of data loader workers for batches of `batch_bytes`, limited by cores and shared memory.

    Zero on a CPU, and outside Linux, where workers cannot be forked.
    """
    if device.type == "cpu" or sys.platform != "linux":
        return 0
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else sys.maxsize
    fitting = free // max(batch_bytes, 1) // (PREFETCH_FACTOR + 1)  # plus one that is being made
    return max(0, min(_MOST, hardware.cores_per_process(), fitting))


@contextmanager
def forking(count: int) -> Iterator[None]:
    """Silence the tokenizers' fork warning inside the block if `count` workers start there; they tokenize on one thread."""
    if not count or _SILENT in os.environ:
        yield
        return
    os.environ[_SILENT] = "false"
    try:
        yield
    finally:
        os.environ.pop(_SILENT, None)


def batch_bytes(sample: Mapping[str, Any], batch_size: int) -> int:
    """Bytes of a whole batch's tensors, estimated from a batch of one."""
    return batch_size * sum(value.nbytes for value in sample.values() if isinstance(value, torch.Tensor))


def stop_workers(loader: Any) -> None:
    """Stop the persistent workers of a DataLoader, or of accelerate's wrapper, now rather than at garbage collection."""
    iterator = getattr(getattr(loader, "base_dataloader", loader), "_iterator", None)
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
