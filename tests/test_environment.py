"""The process of a run keeps the memory that it frees; nobody else's allocator is touched."""

import ctypes
import ctypes.util
import os
import platform
import subprocess
import sys

import pytest
import torch

from medgraft.environment import run_environment

PROGRAM = """
import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
torch.empty(128 << 20, dtype=torch.uint8).fill_(1)
print(resident() - before > 100 << 20)
"""

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="PyTorch has an allocator of its own here, or the C library is not glibc",
)


@pytest.fixture
def bare():
    """This process's environment without settings of an allocator."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}


def _keeps_what_is_freed(environ):
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environ).stdout


@pytest.mark.slow
@pytest.mark.parametrize("library", [True, False], ids=["the system's best", "glibc"])
def test_what_a_run_frees_it_uses_again(library, bare, monkeypatch):
    if not library:
        monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    assert _keeps_what_is_freed(bare) == "False\n"
    assert _keeps_what_is_freed(run_environment(bare)) == "True\n"


def test_an_allocator_is_chosen_only_where_the_user_has_chosen_none(monkeypatch):
    monkeypatch.setattr(ctypes.util, "find_library", {"tcmalloc_minimal": "libtcmalloc_minimal.so.4"}.get)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    chosen = run_environment({"HOME": "/x"})
    assert chosen["LD_PRELOAD"] == "libtcmalloc_minimal.so.4" and chosen["HOME"] == "/x"
    for own in ({"LD_PRELOAD": "libjemalloc.so.2"}, {"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.perturb=1"}):
        assert run_environment(own) == own
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    assert run_environment({"GLIBC_TUNABLES": "glibc.cpu.x=1"})["GLIBC_TUNABLES"].startswith("glibc.cpu.x=1:glibc.malloc.")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert run_environment({}) == {}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert run_environment({}) == {}
