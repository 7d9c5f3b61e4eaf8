"""Capture the GPU work of a function as a CUDA graph."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

failed_graphs: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed. They are not freed, because torch's allocator may still access them."""


def captured(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """Run `step` a few times and capture it as a CUDA graph; RuntimeError if that fails.

    Other threads may use the device during the capture.
    """
    stream = _side_stream(device)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):  # resets the stream, which `torch.cuda.graph` does not do after a failed capture
            step()  # warm-up, in which libraries initialise themselves
            with waiting_is_an_error():  # finds most steps that cannot be captured before a capture begins
                step()
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                step()
    except RuntimeError:
        failed_graphs.append(graph)
        recover(stream.device_index, pool)
        with suppress(RuntimeError):
            graph.reset()
        raise
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """One stream per process, because cuBLAS allocates a workspace for every stream that it has used."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch has no types here


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Raise RuntimeError if torch synchronises with the device inside the block, as that would break a capture."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def recover(device: int, pool: Any) -> None:
    """Reset the allocator and random generator of `device` after a failed capture; torch leaves them in capture mode."""
    with suppress(RuntimeError):  # raised if the capture ended normally
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    generator: Any = torch.cuda.default_generators[device]
    with suppress(RuntimeError):
        generator.graphsafe_set_state(generator.clone_state())
