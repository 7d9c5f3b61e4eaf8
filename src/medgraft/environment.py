"""Environment variables that choose the memory allocator of a run; they have to be set before its process starts."""

from __future__ import annotations

import ctypes.util
import os
import platform
import sys
from collections.abc import Mapping

# no mmap for single blocks, no trimming, and no fast bins, whose small blocks prevent merging free blocks
_GLIBC_TUNABLES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=18446744073709551615:glibc.malloc.mxfast=0"


def run_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environ` with variables that make a CPU run on Linux reuse the memory that it frees; unchanged elsewhere.

    It selects tcmalloc if installed, else glibc tunables, and changes nothing if `environ` already configures an allocator.
    By default glibc uses mmap for each block above 32 MiB and unmaps it when freed, so that a large model's activations are
    fresh pages at every step: a step of BLIP-base (fp32, batch 8) spent 6 of 28 seconds on them. tcmalloc also separates
    small blocks from large ones, which avoids glibc's fragmentation: full fine-tuning of BLIP-base took 6.1 GB instead of
    7.2, LoRA 3.4 instead of 4.2.
    """
    import torch

    chosen = dict(environ)
    if sys.platform != "linux" or torch.accelerator.is_available() or "LD_PRELOAD" in chosen or _has_settings(chosen):
        return chosen
    library = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    if library:
        chosen["LD_PRELOAD"] = library
        chosen.setdefault("TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD", str(1 << 60))  # default: a report for each block above 1 GiB
    elif platform.libc_ver()[0] == "glibc":
        chosen["GLIBC_TUNABLES"] = ":".join(filter(None, [chosen.get("GLIBC_TUNABLES"), _GLIBC_TUNABLES]))
    return chosen


def _has_settings(environ: Mapping[str, str]) -> bool:
    return any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", "")
