"""What the C library does with freed blocks, where tensors lie in its heap: on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of malloc.h
LARGE_BLOCK = 8 << 20
_HIGHEST = 32 << 20  # to which glibc's own threshold rises as blocks are freed, and twice that is kept at the heap's end


@contextmanager
def large_blocks_mapped() -> Iterator[None]:
    """Have glibc map blocks of 8 MiB and more singly inside the block, and give each back when it is freed.

    PyTorch asks for aligned blocks, and these seldom fit the holes that others of their size left, once glibc's threshold has
    risen by itself. A step of BLIP-base (fp32, batch 8, glibc 2.36) peaked at 7.0 GB for 8.1 in full training, in the same
    time, and at 5.1 for 6.4 with LoRA, in a tenth more: fresh pages cost time where blocks live briefly. Nothing is done
    with another C library, or where the environment has settings of its own.
    """
    done = _set(LARGE_BLOCK)
    try:
        yield
    finally:
        if done:
            _set(_HIGHEST)


def _set(threshold: int) -> bool:
    told = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or told:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, threshold) and mallopt(_TRIM_THRESHOLD, 2 * _HIGHEST))
