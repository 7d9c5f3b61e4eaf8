"""What this machine is, and which arithmetic it is good at."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from accelerate import PartialState

T = TypeVar("T")
_PACKAGES = ("medgraft", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "evaluate", "tokenizers")


def device() -> torch.device:
    """The device that accelerate gives this process; MEDGRAFT_DEVICE=cpu keeps it on the CPU."""
    where: torch.device = _processes().device
    return where


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints, of those that accelerate or torchrun started."""
    return bool(_processes().is_main_process)


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of work that accelerate's or torchrun's processes divide among themselves."""
    state = _processes()
    return items[state.process_index :: state.num_processes]


def cores_per_process() -> int:
    """How many cores this process has, shared evenly with those that accelerate or torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def wait_for_everyone() -> None:
    """Wait until every process has come here."""
    _processes().wait_for_everyone()


def bf16_supported(kind: str) -> bool:
    """Whether bf16 matrix products are computed by the hardware of a device type, not emulated."""
    if kind == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind in ("xpu", "mps")


def autocast(where: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """bf16 autocast on `where`, or nothing."""
    return torch.autocast(where.type, torch.bfloat16) if enabled else nullcontext()


def peak_memory_bytes() -> int:
    """This process's highest resident set size, or the accelerator's highest allocation where there is one."""
    if device().type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: ru_maxrss would start from the peak of the process that started this one
        peak = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@functools.cache
def versions() -> dict[str, str | None]:
    """Versions of what a result depends on; None for what is not installed. Read once, at its first use."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


@functools.cache
def allocator() -> str | None:
    """`tcmalloc` if this process has its `malloc`, None for the system's or another."""
    return "tcmalloc" if hasattr(ctypes.CDLL(None), "MallocExtension_ReleaseFreeMemory") else None


def describe() -> dict[str, object]:
    """CPU, accelerators, memory, threads and allocator of this machine."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": gpus,
        "bf16": bf16_supported("cuda" if gpus else "cpu"),
        "platform": platform.platform(),
    }


@functools.cache
def git_revision() -> str | None:
    """The commit of the source tree that this package runs from, `-dirty` if changed; None outside a checkout.

    Read once, at its first use: what changes on disk later does not run.
    """
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return text.stdout.strip() or None


def _processes() -> PartialState:
    """What accelerate knows of this process and its siblings."""
    return PartialState(cpu=os.environ.get("MEDGRAFT_DEVICE") == "cpu")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
