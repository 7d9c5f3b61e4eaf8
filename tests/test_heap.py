"""What is freed stays with the process for as long as is wanted, and what is kept leaves no holes."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from medgraft.heap import kept_heap, mapped_blocks

def fresh():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

fresh()
print(fresh() > 64)  # pages, of 4 KiB or 2 MiB
def left():  # of three blocks, when the one between the others is gone
    before = resident()
    blocks = [torch.ones(5 << 20) for _ in range(3)]
    del blocks[1]
    return (resident() - before + (10 << 20)) // (20 << 20)

torch.ones(7 << 20)  # freed, which raises the size that glibc maps by itself
with mapped_blocks():
    print(left())
print(left())
with kept_heap():
    fresh()
    with kept_heap():
        fresh()
    fresh()
    print(fresh() > 64)
    kept = resident()
print(fresh() > 64, kept - resident() > 48 << 20)
"""

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="PyTorch has an allocator of its own here, or the C library is not glibc",
)


def _said(**environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=own | environment)
    return done.stdout.splitlines()


def test_pages_are_fresh_again_only_outside():
    assert _said() == ["True", "2", "3", "False", "True True"]


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_is_left_alone(name):
    value = "33554432" if name.startswith("MALLOC") else "glibc.malloc.mmap_threshold=33554432"
    assert _said(**{name: value}) == ["True", "3", "3", "True", "True False"]
