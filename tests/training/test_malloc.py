"""Large blocks are mapped singly and given back, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, torch
from medgraft.training.malloc import LARGE_BLOCK, map_large_blocks

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
torch.empty(31 << 20, dtype=torch.uint8)  # freed at once, which raises glibc's own threshold
done, before = map_large_blocks(), mallinfo().hblkhd
block = torch.empty(LARGE_BLOCK, dtype=torch.uint8)
held = mallinfo().hblkhd - before
del block
print(done, held >= LARGE_BLOCK, mallinfo().hblkhd - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")


def _said(**environment):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=os.environ | environment
    ).stdout.split()


def test_a_large_block_is_mapped_and_given_back():
    assert _said() == ["True", "True", "0"]


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_MMAP_THRESHOLD_": "33554432"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"}],
    ids=list,
)
def test_what_the_environment_says_is_left_alone(environment):
    assert _said(**environment) == ["False", "False", "0"]
