"""What is freed stays with the process for as long as is wanted, and what is kept leaves no holes."""

import ctypes
import ctypes.util
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medgraft.benchmark.workers import Worker
from medgraft.heap import with_tcmalloc

PROGRAM = """
import resource, torch
from medgraft.heap import kept_heap, mapped_blocks

def fresh():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(128 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def always_fresh():
    return min(fresh() for _ in range(5)) > 64  # pages, of 4 KiB or 2 MiB

def given_back():  # of three blocks, the one between the others
    blocks = [torch.ones(5 << 20) for _ in range(3)]
    before = resident()
    del blocks[1]
    return before - resident() > 10 << 20

print(always_fresh())
torch.ones(7 << 20)  # freed, which raises the size that glibc maps by itself
with mapped_blocks():
    print(given_back())
print(given_back())
with kept_heap():
    with kept_heap():
        fresh()
    print(always_fresh(), given_back())
    kept = resident()
left = resident()
print(always_fresh(), kept - left > 48 << 20)
"""

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="PyTorch has an allocator of its own here, or the C library is not glibc",
)


def _said(**environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=own | environment)
    return done.stdout.splitlines()


def test_pages_are_fresh_again_only_outside():
    assert _said() == ["True", "True", "False", "False False", "True True"]


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_is_left_alone(name):
    value = "33554432" if name.startswith("MALLOC") else "glibc.malloc.mmap_threshold=33554432"
    assert _said(**{name: value}) == ["True", "False", "False", "True False", "True False"]


def test_tcmalloc_is_asked_for_where_the_system_has_it_and_nothing_else_is_chosen(monkeypatch):
    monkeypatch.setattr(ctypes.util, "find_library", {"tcmalloc_minimal": "libtcmalloc_minimal.so.4"}.get)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    chosen = with_tcmalloc({"HOME": "/x"})
    assert chosen["LD_PRELOAD"] == "libtcmalloc_minimal.so.4" and chosen["HOME"] == "/x"
    for own in ({"LD_PRELOAD": "libjemalloc.so.2"}, {"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.perturb=1"}):
        assert with_tcmalloc(own) == own
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert with_tcmalloc({}) == {}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    assert with_tcmalloc({}) == {}


@pytest.mark.skipif(
    "LD_PRELOAD" in os.environ or "LD_PRELOAD" not in with_tcmalloc(os.environ),
    reason="tcmalloc is not installed, or the environment has an allocator of its own",
)
def test_with_tcmalloc_blocks_are_kept_and_given_back_and_the_worker_has_it():
    assert _said(**with_tcmalloc({}))[-2:] == ["False False", "False True"]
    told = "from medgraft import hardware; print(hardware.describe().allocator)"
    environment = with_tcmalloc(dict(os.environ))
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["tcmalloc"]
    with Worker() as worker:
        maps = Path(f"/proc/{worker._running().pid}/maps")
        assert any("tcmalloc" in line for line in _lines_once_started(maps))


def _lines_once_started(maps):
    for _ in range(100):
        lines = maps.read_text(encoding="utf-8").splitlines()
        if any("libc" in line for line in lines):
            break
        time.sleep(0.1)
    return lines
