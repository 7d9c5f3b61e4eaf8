"""Checkpoint files: their paths, the digests of their tensors, and the fingerprint of the whole checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from medgraft.errors import BackboneError
from medgraft.file_index import FileIndex, file_state

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_QUIET_BELOW = 4 << 30  # bytes of a file from which on hashing shows a progress bar


class TensorDigest(NamedTuple):
    """A tensor's dtype and shape as text, and the hex SHA-256 of dtype, shape and row-major bytes."""

    layout: str
    sha256: str


def weight_files(source: str) -> tuple[Path, ...]:
    """The weight files of a folder or hub id (downloaded or cached by transformers)."""
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
    raise BackboneError(f"{source} has no weights: none of {', '.join(_SINGLE + _INDEXED)} exists.")


def fingerprint(source: str) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every tensor, sorted by name; independent of sharding and order."""
    digests = checkpoint_digests(source)
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(f"{name}:{digests[name].sha256}\n".encode())
    return whole.hexdigest()


def checkpoint_digests(source: str) -> dict[str, TensorDigest]:
    """The digest of every tensor in the weight files of `source`; files in the file index are not read again."""
    files, index = weight_files(source), FileIndex("tensors 1")
    known = index.find(files)
    for path in files:
        if path not in known:
            state = file_state(path)
            known[path] = _file_digests(path, loud=state is not None and state.size >= _QUIET_BELOW)
            index.enter({path: (state, known[path])} if state else {})
    return {name: TensorDigest(*digest) for path in files for name, digest in known[path].items()}


def _file_digests(path: Path, *, loud: bool) -> dict[str, TensorDigest]:
    with _opened(path) as (names, read):
        return _digests(names, read, progress=f"hashing {path.name}" if loud else None)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], torch.Tensor]]]:
    """The tensor names in a file, and a function that reads a tensor by name."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            yield list(file.keys()), file.get_tensor
    else:
        tensors: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        yield list(tensors), tensors.__getitem__


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """`tensor_digest` of each tensor, by name."""
    return {name: digest.sha256 for name, digest in _digests(tensors, tensors.__getitem__).items()}


def _digests(
    names: Collection[str], read: Callable[[str], torch.Tensor], progress: str | None = None
) -> dict[str, TensorDigest]:
    """Hash in parallel threads, as hashlib releases the GIL; `read` is called in the threads too."""

    def one(name: str) -> TensorDigest:
        tensor = read(name)
        return TensorDigest(tensor_layout(tensor), tensor_digest(tensor))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(names, tqdm(pool.map(one, names), progress, len(names), disable=progress is None), strict=True))


def tensor_layout(tensor: torch.Tensor) -> str:
    """A tensor's dtype and shape as text, as used in its digest."""
    return f"{tensor.dtype}{tuple(tensor.shape)}"


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hex SHA-256 of a tensor's dtype, shape and row-major bytes."""
    whole = hashlib.sha256(tensor_layout(tensor).encode())
    whole.update(_bytes(tensor.detach().cpu()).numpy().data)
    return whole.hexdigest()


def tensor_checksum(tensor: torch.Tensor) -> str:
    """Hex SHA-256 of a tensor's dtype, shape, the 64-bit sum of all its bytes, and about 1,000 samples of them.

    It detects changed tensors at memory speed, on the tensor's own device. It is no cryptographic digest: contents with the
    same checksum are easy to construct.
    """
    content = _bytes(tensor.detach())
    long = content.numel() // 8 * 8
    numbers = content[:long].clone() if content.storage_offset() % 8 else content[:long]
    numbers = numbers.view(torch.int64)
    sample = torch.cat([numbers[:: max(numbers.numel() // 1000, 1)], content[long:].to(torch.int64), numbers.sum()[None]])
    whole = hashlib.sha256(tensor_layout(tensor).encode())
    whole.update(sample.cpu().numpy().data)
    return whole.hexdigest()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's row-major bytes, on its own device."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
