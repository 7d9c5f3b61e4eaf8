"""Reading what is needed next in threads, while the model is at work on what was read before."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_MOST_THREADS = 12  # beyond which Python's lock leaves nothing to gain


def read_ahead(items: Iterable[T], read: Callable[[T], R], *, threads: int = 1, ahead: int = 1) -> Iterator[tuple[T, R]]:
    """Each of `items` with what `read` makes of it, in order; as many as `ahead` more are being read meanwhile.

    What `read` raises is raised where its item would come. Nothing more is read once the iterator is closed.
    """
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="read-ahead")
    coming: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            coming.append((item, pool.submit(read, item)))
            if len(coming) > ahead:
                first, future = coming.popleft()
                yield first, future.result()
        while coming:
            first, future = coming.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def reader_threads() -> int:
    """How many threads read images while a GPU computes: the processors that this process may use, but one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable - 1, _MOST_THREADS))


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` in memory from which `device` copies by itself, if it is a GPU."""
    if device.type != "cuda":
        return tensor
    with torch.cuda.device(device):  # a new thread would start on the first one
        return tensor.pin_memory()
