"""Kill processes (kill -9) that fill one feature store at random moments; what is in it afterwards must be whole.

    python tests/features/chaos_store.py --kills 20

It needs Linux. Two processes fill the store at a time, and one of them is killed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from medgraft.features import store

KEY = {"model": "chaos"}
COUNT = 400


def feature(number: int) -> torch.Tensor:
    """The feature of an image, of 200 KB."""
    return torch.full((50, 1024), float(number))


def fill(root: Path) -> int:
    """Start a process that puts all features into the store in shards of a MB; its id."""
    child = os.fork()
    if child == 0:
        try:
            store._SHARD_BYTES = 1 << 20
            ours = store.FeatureStore(KEY, max_bytes=10**10, root=root)
            for number in range(COUNT):
                ours.put({str(number): feature(number)})
            ours.flush()
            os._exit(0 if ours.problem is None else 1)
        finally:
            os._exit(1)
    return child


def main() -> int:
    """Print what is in the store after the kills; 1 if anything is damaged or missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance, kills, stored = random.Random(arguments.seed), 0, 0
    while kills < arguments.kills:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            killed, other = fill(root), fill(root)
            time.sleep(chance.uniform(0, 0.5))
            os.kill(killed, signal.SIGKILL)
            kills += os.waitpid(killed, 0)[1] == signal.SIGKILL
            assert os.waitpid(other, 0)[1] == 0
            damaged, sound = store.verify(root)
            found = store.FeatureStore(KEY, max_bytes=0, root=root)
            whole = all(torch.equal(found.get(str(number)), feature(number)) for number in range(COUNT))
            if damaged or sound != COUNT or not whole:
                print(f"after kill {kills}: {len(damaged)} damaged shards, {sound} of {COUNT} features")
                return 1
            stored += 1
    print(f"{stored} stores are whole after {kills} kills")
    return 0


if __name__ == "__main__":
    sys.exit(main())
