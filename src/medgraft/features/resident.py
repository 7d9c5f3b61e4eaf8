"""Stored features in the memory of the training device, if they fit: a batch then holds row numbers instead of features.

A feature of BLIP-base is 0.85 MiB. Stacking, pinning and copying a batch of 32 from the store takes about 20 ms of host time
in every step; from device memory it is one `index_select` with bit-identical results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch

from medgraft.features.cached import CachedFeatures
from medgraft.types import ImageSource

_AT_ONCE = 64  # features read and copied in one batch
_AHEAD = 2  # batches read while one is copied
_SHARE = 0.4  # share of an accelerator's free memory to use for device_gb="auto"


@dataclass(frozen=True)
class ResidentFeatures:
    """Features `values` [N, S, C] on a device, and the row of each image file."""

    values: torch.Tensor
    rows: Mapping[ImageSource, int]

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Features [K, S, C] of `rows` [K], a tensor on the same device."""
        return self.values.index_select(0, rows)


def device_bytes(device: torch.device, limit_gb: float | Literal["auto"]) -> int:
    """How many bytes features may take on `device`: `limit_gb`, or for "auto" a share of an NVIDIA GPU's free memory."""
    if limit_gb != "auto":
        return int(limit_gb * 1e9)
    return int(_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def load_resident(
    cached: CachedFeatures, paths: Sequence[ImageSource], device: torch.device, max_bytes: int
) -> ResidentFeatures | None:
    """Load the stored features of `paths` to `device`; None if there are none or they exceed `max_bytes`.

    Images whose features are not stored get no row. Images with the same content share a row.
    """
    digests = cached.image_digests(paths) if max_bytes else {}
    unique = list({digest: path for path, digest in digests.items() if digest in cached.store}.values())
    if not unique:
        return None
    first = cached.stored(unique[0])
    if first is None or first.nbytes * len(unique) > max_bytes:
        return None
    values = torch.empty(len(unique), *first.shape, dtype=first.dtype, device=device)
    rows: dict[str, int] = {}
    for batch, features in _read_ahead(cached, unique, pinned=device.type == "cuda"):
        values[len(rows) : len(rows) + len(batch)].copy_(features, non_blocking=True)
        for path in batch:
            rows[digests[path]] = len(rows)
    return ResidentFeatures(values, {path: rows[digest] for path, digest in digests.items() if digest in rows})


def _read_ahead(
    cached: CachedFeatures, paths: Sequence[ImageSource], *, pinned: bool
) -> Iterator[tuple[Sequence[ImageSource], torch.Tensor]]:
    """Batches of paths with their features [n, S, C]; a thread reads the next batches meanwhile."""

    def read(batch: Sequence[ImageSource]) -> tuple[Sequence[ImageSource], torch.Tensor | None]:
        found = [(path, feature) for path in batch if (feature := cached.stored(path)) is not None]  # None if damaged
        if not found:
            return [], None
        stacked = torch.stack([feature for _, feature in found])
        return [path for path, _ in found], stacked.pin_memory() if pinned else stacked

    batches = [paths[i : i + _AT_ONCE] for i in range(0, len(paths), _AT_ONCE)]
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = deque(reader.submit(read, batch) for batch in batches[:_AHEAD])
        for number in range(len(batches)):
            batch, features = coming.popleft().result()
            coming.extend(reader.submit(read, later) for later in batches[number + _AHEAD : number + _AHEAD + 1])
            if features is not None:
                yield batch, features
