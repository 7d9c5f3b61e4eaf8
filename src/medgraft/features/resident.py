"""Stored features in the memory of the training device, if they fit: a batch then has row numbers instead of features.

A feature of BLIP-base is 0.85 MiB. Stacking, pinning and copying a batch of 32 from the store takes about 20 ms of host time
in every step; from device memory it is one `index_select` with bit-identical results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from medgraft.data.read_ahead import read_ahead
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
    digests = cached.image_digests(paths)
    unique = list(dict.fromkeys(digest for digest in digests.values() if digest in cached.store))
    if not unique:
        return None
    first = cached.store.get(unique[0])
    if first is None or first.nbytes * len(unique) > max_bytes:
        return None
    values = torch.empty(len(unique), *first.shape, dtype=first.dtype, device=device)
    rows: dict[str, int] = {}

    def read(batch: Sequence[str]) -> tuple[list[str], torch.Tensor | None]:
        found = {digest: feature for digest in batch if (feature := cached.store.get(digest)) is not None}  # None if damaged
        stacked = torch.stack(list(found.values())) if found else None
        return list(found), stacked.pin_memory() if stacked is not None and device.type == "cuda" else stacked

    batches = [unique[i : i + _AT_ONCE] for i in range(0, len(unique), _AT_ONCE)]
    for _, (found, features) in read_ahead(batches, read, ahead=_AHEAD):
        if features is not None:
            values[len(rows) : len(rows) + len(found)].copy_(features, non_blocking=True)
            rows |= {digest: row for row, digest in enumerate(found, len(rows))}
    return ResidentFeatures(values, {path: rows[digest] for path, digest in digests.items() if digest in rows})
