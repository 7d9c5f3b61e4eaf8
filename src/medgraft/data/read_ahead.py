"""Reading what is needed next in threads, while the model is at work on what was read before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


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
