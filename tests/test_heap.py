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
print(always_fresh(), kept - resident() > 48 << 20)
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
    assert _said() == ["True", "True", "False", "False False", "True True"]


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_is_left_alone(name):
    value = "33554432" if name.startswith("MALLOC") else "glibc.malloc.mmap_threshold=33554432"
    assert _said(**{name: value}) == ["True", "False", "False", "True False", "True False"]
