"""What the C library does with freed memory, where tensors of a CPU lie in its heap."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

import torch

from medgraft import hardware

_MXFAST, _TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = 1, -1, -3, -4  # names of malloc.h
_HIGHEST = 32 << 20  # to which glibc's own threshold rises as blocks are freed, and twice that is kept at the heap's end
_USUAL = {_MMAP_MAX: 1 << 16, _MMAP_THRESHOLD: _HIGHEST, _TRIM_THRESHOLD: 2 * _HIGHEST, _MXFAST: 128}
# nothing mapped, nothing trimmed, and no fast bins, whose small blocks keep holes apart: 0.2 GB of 7.3
_KEPT = {**_USUAL, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _MXFAST: 0}
_MAPPED = {**_USUAL, _MMAP_THRESHOLD: 1 << 20}
_ways = [_USUAL]
_lock = Lock()


@contextmanager
def kept_heap() -> Iterator[None]:
    """Have glibc keep what is freed inside the block for what is allocated next, and give it back at the end.

    By itself glibc maps blocks above 32 MiB singly and returns them as they are freed, so that a large model's activations
    are fresh pages at every step, each of which the kernel has to find and clear. A step of BLIP-base (fp32, batch 8, glibc
    2.36, a virtual machine) spent 6 of 28 seconds on 1.8 million of them; kept, a step takes 21 s. Nothing is done on an
    accelerator, with another C library, or where the environment has settings of its own.

    Blocks may be nested, and an inner one gives back at its end too: put one around work that leaves holes. Settings are the
    process's; after the outermost block they are glibc's usual ones, but its threshold moves no more.
    """
    with _way(_KEPT):
        yield


@contextmanager
def mapped_blocks() -> Iterator[None]:
    """Have glibc map every block of 1 MiB and more singly inside the block: for what stays, such as weights.

    In the heap they and what is freed between them would leave holes, 0.4 GB after loading BLIP-base in 4 bits.
    """
    with _way(_MAPPED):
        yield


@contextmanager
def _way(options: dict[int, int]) -> Iterator[None]:
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _ways.append(options)
        _set(libc, options)
    try:
        yield
    finally:
        with _lock:
            _ways.pop()
            _set(libc, _ways[-1])
        give_back = libc.malloc_trim if hardware.allocator() != "tcmalloc" else libc.MallocExtension_ReleaseFreeMemory
        give_back(0)


def with_tcmalloc(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with tcmalloc, on Linux without an accelerator, if the system has it and no other is asked for.

    It keeps small blocks apart from large ones, between which glibc's leave holes that nothing fits, and keeps pages by itself.
    BLIP-base in full took 6.1 GB for 7.2, with LoRA 3.4 for 4.2, and steps 3 to 8 % less time.
    """
    chosen = dict(environment)
    library = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    on_cpu = sys.platform == "linux" and not torch.accelerator.is_available()  # which leaves the accelerator asleep
    if library and on_cpu and "LD_PRELOAD" not in chosen and not _told(chosen):
        chosen["LD_PRELOAD"] = library
        chosen.setdefault("TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD", str(1 << 60))  # it reports blocks above 1 GiB otherwise
    return chosen


def _told(environment: Mapping[str, str]) -> bool:
    """Whether `environment` has settings for the C library's heap."""
    return any(name.startswith("MALLOC_") for name in environment) or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is one whose heap is to be kept."""
    if sys.platform != "linux" or _told(os.environ) or hardware.device().type != "cpu":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for name, value in options.items():
        libc.mallopt(name, value)
