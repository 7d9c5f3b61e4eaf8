"""Checkpoint files: where they are, and the fingerprint of what is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from medgraft.errors import BackboneError

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def weight_files(source: str) -> tuple[Path, ...]:
    """The files that hold the weights of a folder or of a hub id (downloaded or cached by transformers)."""
    from transformers.utils import cached_file

    def find(name: str) -> str | None:
        found: str | None = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        return found

    for name in _SINGLE:
        if path := find(name):
            return (Path(path),)
    for name in _INDEXED:
        if path := find(name):
            shards = sorted(set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()))
            return tuple(Path(p) for p in (find(shard) for shard in shards) if p)
    raise BackboneError(f"{source} holds no weights: none of {', '.join(_SINGLE + _INDEXED)} is there.")


def fingerprint(source: str) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes, in the order of names: independent of sharding and order."""
    digests = {name: tensor_digest(tensor) for path in weight_files(source) for name, tensor in _tensors(path)}
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(f"{name}:{digests[name]}\n".encode())
    return whole.hexdigest()


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                yield name, file.get_tensor(name)
    else:
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's type, shape and row-major bytes, in hex."""
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    whole = hashlib.sha256(head)
    whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
