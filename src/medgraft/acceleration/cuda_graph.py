"""Capturing what a function launches on a GPU as a CUDA graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

failed_graphs: list[torch.cuda.CUDAGraph] = []
"""Those whose capture was cut off. They stay, as torch's allocator may still ask them for it."""


def captured(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """`step`, which is run a few times, as a CUDA graph; RuntimeError if it cannot be captured.

    Other threads may use the device meanwhile.
    """
    stream = _side_stream(device)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):  # which `torch.cuda.graph` does not leave if a capture fails
            step()  # libraries set themselves up
            with _waiting_is_an_error():  # and could not be captured, so that most failures come before a capture
                step()
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                step()
    except RuntimeError:
        failed_graphs.append(graph)
        with suppress(RuntimeError):  # where the capture was cut off, random numbers and the allocator would go on with it
            graph.reset()
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        raise
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """One for the process: cuBLAS keeps 32 MiB for every stream that it has worked on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch has no types here


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """RuntimeError if torch waits for the device inside the block."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
