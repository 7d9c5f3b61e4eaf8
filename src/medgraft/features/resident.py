"""Stored features in the memory of the training device, where they fit: a batch then names rows instead of carrying them.

A feature of BLIP-base is 0.85 MiB. Read from the store, a batch of 32 is stacked, pinned and copied, some 20 ms of the host's
time in every step; taken from the device's memory it is one `index_select`, bit for bit the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from medgraft.features.supply import FeatureSupply

_AT_ONCE = 64  # features that are read and copied together
_AHEAD = 2  # such batches that are read while one is copied
_SHARE = 0.4  # of an accelerator's free memory, for device_gb="auto"


@dataclass(frozen=True)
class ResidentFeatures:
    """Features `values` [N, S, C] on a device, and the row of each image's file in them."""

    values: torch.Tensor
    rows: Mapping[Path, int]

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Features [K, S, C] of `rows` [K], which lie on the same device."""
        return self.values.index_select(0, rows)


def device_bytes(device: torch.device, limit_gb: float | Literal["auto"]) -> int:
    """How many bytes of `device` features may take: `limit_gb`, or for "auto" a share of what is free on an NVIDIA GPU."""
    if limit_gb != "auto":
        return int(limit_gb * 1e9)
    return int(_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def load_resident(
    supply: FeatureSupply, paths: Sequence[Path], device: torch.device, max_bytes: int
) -> ResidentFeatures | None:
    """The stored features of `paths` on `device`; None if they take more than `max_bytes`, or there are none.

    Images that the store lacks have no row. Images with the same content share one.
    """
    digests = {supply.digest(path): path for path in paths if supply.digest(path) in supply.store} if max_bytes else {}
    if not digests:
        return None
    unique = list(digests.values())
    first = supply.stored(unique[0])
    if first is None or first.nbytes * len(unique) > max_bytes:
        return None
    values = torch.empty(len(unique), *first.shape, dtype=first.dtype, device=device)
    rows: dict[str, int] = {}
    for some, features in _read_ahead(supply, unique, pinned=device.type == "cuda"):
        values[len(rows) : len(rows) + len(some)].copy_(features, non_blocking=True)
        for path in some:
            rows[supply.digest(path)] = len(rows)
    return ResidentFeatures(values, {path: rows[d] for path in paths if (d := supply.digest(path)) in rows})


def _read_ahead(supply: FeatureSupply, paths: Sequence[Path], *, pinned: bool) -> Iterator[tuple[Sequence[Path], torch.Tensor]]:
    """Paths, some at a time, with their features [n, S, C]; the next ones are read in a thread meanwhile."""

    def read(some: Sequence[Path]) -> tuple[Sequence[Path], torch.Tensor | None]:
        found = [(path, feature) for path in some if (feature := supply.stored(path)) is not None]  # not if found damaged
        if not found:
            return [], None
        stacked = torch.stack([feature for _, feature in found])
        return [path for path, _ in found], stacked.pin_memory() if pinned else stacked

    batches = [paths[i : i + _AT_ONCE] for i in range(0, len(paths), _AT_ONCE)]
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = deque(reader.submit(read, batch) for batch in batches[:_AHEAD])
        for number in range(len(batches)):
            some, features = coming.popleft().result()
            coming.extend(reader.submit(read, later) for later in batches[number + _AHEAD : number + _AHEAD + 1])
            if features is not None:
                yield some, features
