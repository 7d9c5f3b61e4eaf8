"""Seed random generators for a run without affecting the caller's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import transformers

from medgraft import hardware


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators inside the block and restore their states afterwards."""
    where = hardware.device()
    on_accelerator = where.type != "cpu"
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([where] if on_accelerator else [], device_type=where.type if on_accelerator else "cuda"):
        try:
            transformers.set_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
