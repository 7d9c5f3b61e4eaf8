"""This machine's devices, memory, versions and bf16 support."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import psutil
import torch
from accelerate import PartialState

from medgraft.errors import ConfigError
from medgraft.machine import Hardware
from medgraft.train_config import Dtype

T = TypeVar("T")
DTYPES: dict[Literal["bf16", "fp16", "fp32"], torch.dtype] = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32,
}  # fmt: skip
_PATIENCE = timedelta(hours=6)  # of processes that wait for one which reads data or scores captions
_PACKAGES = ("medgraft", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "evaluate", "tokenizers")


def processes() -> PartialState:
    """The state of this process and its group according to accelerate."""
    return PartialState(cpu=os.environ.get("MEDGRAFT_DEVICE") == "cpu", timeout=_PATIENCE)


def device() -> torch.device:
    """The device that accelerate assigns to this process; the CPU if MEDGRAFT_DEVICE=cpu."""
    where: torch.device = processes().device
    return where


def is_main_process() -> bool:
    """Whether this process writes files and prints, among those that accelerate or torchrun started."""
    return bool(processes().is_main_process)


def process_count() -> int:
    """The number of processes that accelerate or torchrun started for this run."""
    return int(processes().num_processes)


def is_sharded() -> bool:
    """Whether FSDP divides the weights in training among the processes, by settings of accelerate in the environment."""
    return process_count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def fsdp_version() -> int:
    """The version that accelerate's settings name; accelerate takes 1 if they name none."""
    return int(os.environ.get("FSDP_VERSION", "1"))


def largest(number: int) -> int:
    """The largest of the numbers that all processes give to this function."""
    if process_count() == 1:
        return number
    numbers = torch.tensor(number, device=device())
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return int(numbers)


def share(items: Iterable[T]) -> Iterator[T]:
    """This process's share of `items`, which are divided among the processes of accelerate or torchrun."""
    state = processes()
    return islice(items, state.process_index, None, state.num_processes)


def cores_per_process() -> int:
    """This process's number of cores, if those of this machine are divided evenly among the local processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def wait_for_everyone() -> None:
    """Wait until every process has called this function."""
    processes().wait_for_everyone()


def bf16_supported(kind: str) -> bool:
    """Whether the hardware of a device type computes bf16 matrix products, without emulation."""
    if kind == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind in ("xpu", "mps")


def compute_dtype(wanted: Dtype = "auto") -> torch.dtype:
    """What to compute in on this process's device; `auto` is the fastest that the hardware has without emulation.

    That is bf16, whose range is fp32's. A GPU without bf16 (before Ampere) has fp16, a CPU then fp32.
    """
    if wanted != "auto":
        if wanted not in DTYPES:
            raise ConfigError(f"dtype {wanted!r} does not exist. Known: auto, {', '.join(DTYPES)}.")
        return DTYPES[wanted]
    kind = device().type
    if bf16_supported(kind):
        return torch.bfloat16
    return torch.float16 if kind == "cuda" else torch.float32


def dtype_name(dtype: torch.dtype) -> Literal["bf16", "fp16", "fp32"]:
    """The name of a dtype of `compute_dtype`."""
    return next(name for name, value in DTYPES.items() if value == dtype)


def autocast(where: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to `dtype` on `where`; for fp32 a context without effect."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(where.type, dtype)


def no_autocast(where: torch.device) -> AbstractContextManager[object]:
    """Disable autocast on `where`, even inside an autocast block."""
    return torch.autocast(where.type, enabled=False)


def peak_memory_bytes() -> int:
    """This process's peak allocation on a CUDA device, else its peak resident set size."""
    if device().type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: ru_maxrss would include the parent process's peak
        peak = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # POSIX only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@functools.cache
def versions() -> dict[str, str | None]:
    """Versions of Python and the packages that results depend on, None if not installed. Read once, at first use."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


@functools.cache
def allocator() -> str | None:
    """`tcmalloc` if this process uses its `malloc`, None for any other; checked on Linux only."""
    return "tcmalloc" if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "MallocExtension_ReleaseFreeMemory") else None


def describe() -> Hardware:
    """This machine as this process sees it."""
    gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Hardware(
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count(),
        threads=torch.get_num_threads(),
        allocator=allocator(),
        memory_bytes=psutil.virtual_memory().total,
        accelerators=gpus,
        bf16=bf16_supported("cuda" if gpus else "cpu"),
        platform=platform.platform(),
    )


@functools.cache
def git_revision() -> str | None:
    """The git commit of this package's source tree, with `-dirty` if it has changes; None outside a checkout.

    Read once, at first use, because later changes on disk do not affect the running code.
    """
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return text.stdout.strip() or None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
