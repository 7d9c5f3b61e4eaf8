"""Digests and checksums of tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
from tqdm import tqdm

_PIECE = 1 << 24  # numbers that are converted and hashed at a time
_Digest = TypeVar("_Digest")


class TensorDigest(NamedTuple):
    """A loaded tensor's dtype and shape as text, its digest, and the digest of its values rounded to bf16.

    The last two are equal if it is no floating-point tensor.
    """

    layout: str
    sha256: str
    rounded: str


class StoredDigest(NamedTuple):
    """The digest of a tensor in a file as it is stored, and those of the tensor loaded in fp32."""

    sha256: str
    loaded: TensorDigest


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """`tensor_digest` of each tensor, by name."""
    return in_parallel(tensor_digest, tensors, tensors.__getitem__)


def in_parallel(
    digest: Callable[[torch.Tensor], _Digest],
    names: Collection[str],
    read: Callable[[str], torch.Tensor],
    progress: str | None = None,
) -> dict[str, _Digest]:
    """`digest` of each tensor by name, in threads, as hashlib releases the GIL; `read` is called in the threads too."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = pool.map(lambda name: digest(read(name)), names)
        return dict(zip(names, tqdm(found, progress, len(names), disable=progress is None), strict=True))


def tensor_layout(tensor: torch.Tensor) -> str:
    """A tensor's dtype and shape as text, as used in its digest."""
    return _layout(tensor.dtype, tensor)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hex SHA-256 of a tensor's dtype, shape and row-major bytes."""
    return _digests_as(tensor, tensor.dtype)[tensor.dtype]


def stored_digest(tensor: torch.Tensor) -> StoredDigest:
    """The digests of a tensor in a file; reads it once."""
    stored = tensor.dtype
    loaded, rounded = (torch.float32, torch.bfloat16) if stored.is_floating_point else (stored, stored)
    found = _digests_as(tensor, stored, loaded, rounded)
    return StoredDigest(found[stored], TensorDigest(_layout(loaded, tensor), found[loaded], found[rounded]))


def _digests_as(tensor: torch.Tensor, *dtypes: torch.dtype) -> dict[torch.dtype, str]:
    """`tensor_digest` of the tensor in each of `dtypes`: its own, or that of its values in fp32 or rounded from fp32."""
    wholes = {dtype: hashlib.sha256(_layout(dtype, tensor).encode()) for dtype in dtypes}
    for piece in torch.split(tensor.detach().cpu().contiguous().reshape(-1), _PIECE):
        for dtype, whole in wholes.items():
            values = piece if dtype == piece.dtype else piece.float().to(dtype)
            whole.update(_bytes(values).numpy().data)
    return {dtype: whole.hexdigest() for dtype, whole in wholes.items()}


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


def _layout(dtype: torch.dtype, tensor: torch.Tensor) -> str:
    return f"{dtype}{tuple(tensor.shape)}"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's row-major bytes, on its own device."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
