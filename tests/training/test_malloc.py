"""Large blocks are mapped singly and given back, for as long as is wanted, unless the environment says otherwise."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, torch
from medgraft.training.malloc import LARGE_BLOCK, large_blocks_mapped

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info

def mapped():
    before = mallinfo().hblkhd
    blocks = [torch.empty(LARGE_BLOCK, dtype=torch.uint8) for _ in range(12)]  # more than is kept at the heap's end
    held = mallinfo().hblkhd - before >= LARGE_BLOCK
    del blocks
    return held, mallinfo().hblkhd - before

torch.empty(31 << 20, dtype=torch.uint8)  # freed at once, which raises glibc's own threshold
print(*mapped())
with large_blocks_mapped():
    print(*mapped())
print(*mapped())
"""

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="PyTorch has an allocator of its own here, or another C library than a glibc that tells of its blocks",
)


def _said(**environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=own | environment)
    return done.stdout.splitlines()


def test_a_large_block_is_mapped_and_given_back():
    assert _said() == ["False 0", "True 0", "False 0"]


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_is_left_alone(name):
    value = "33554432" if name.startswith("MALLOC") else "glibc.malloc.mmap_threshold=33554432"
    assert _said(**{name: value}) == ["False 0"] * 3
