"""Read safetensors files without torch: headers are checked against the file's size before a tensor is read.

The format: 8 bytes with the header's length, the header in JSON, then the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medgraft.adapter.files import file_size, reading, shown, strict_json
from medgraft.errors import AdapterError

_HEADER_BYTES = 16 << 20
_MAX_TENSORS = 50_000
_MAX_DIMENSIONS = 8
_PIECE = 1 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32,
    "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip
# the bits of a float's exponent, all of which are set in NaN and infinity alone; they order floats by size
_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000, "F64": 0x7FF0_0000_0000_0000, "F8_E5M2": 0x7C, "F8_E4M3": 0x7F}
LARGEST = 2.0**20  # such weights can make logits infinite
# the bits of LARGEST, in dtypes that reach it
_TOO_LARGE = {"BF16": (127 + 20) << 7, "F32": (127 + 20) << 23, "F64": (1023 + 20) << 52}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its dtype by safetensors' name, its shape, and where its bytes begin and end in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors in a file, by name; AdapterError unless the header is sound and its tensors fill the file exactly."""
    size = file_size(path)
    with reading(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise AdapterError(f"{path} is cut off or no safetensors file: it has {size:,} bytes. Copy it again.")
        if length > _HEADER_BYTES:
            raise AdapterError(f"{path} has a header of {length:,} bytes; at most {_HEADER_BYTES:,} are read.")
        content = file.read(length)
    header = strict_json(content, f"The header of {path}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{path}: __metadata__ must map names to texts.")
    if len(header) > _MAX_TENSORS:
        raise AdapterError(f"{path} has {len(header):,} tensors; at most {_MAX_TENSORS:,} are read.")
    tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != end:
            raise AdapterError(f"{path}: the bytes of {name} do not begin where those before it end. Copy it again.")
        end = tensor.end
    if end != size:
        raise AdapterError(f"{path} has {size:,} bytes where its header says {end:,}. Copy it again.")
    return tensors


def _stored(path: Path, name: str, entry: Any, begin: int) -> StoredTensor:
    """One entry of the header; AdapterError unless it has a dtype, a shape, and offsets that agree with them."""
    if not (name and name.isprintable()):
        raise AdapterError(f"{path}: {shown(name)} is no name of a tensor.")
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)], **more} if not more:
            sound = len(shape) <= _MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
            if sound and dtype in _BITS and start >= 0 and end - start == math.prod(shape) * _BITS[dtype] // 8:
                return StoredTensor(dtype, tuple(shape), begin + start, begin + end)
    raise AdapterError(f"{path}: the header's entry for {name} is wrong: {shown(entry)}. Copy it again.")


def check_finite(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """AdapterError if a tensor holds NaN, infinity, or a value of LARGEST or more, which can make logits infinite."""
    for name, tensor in tensors.items():
        mask = _EXPONENT.get(tensor.dtype)
        if mask is None:
            continue
        bits = np.dtype(f"<u{_BITS[tensor.dtype] // 8}")
        largest = max((int((np.frombuffer(p, bits) & bits.type(mask)).max()) for p in _pieces(path, tensor)), default=0)
        if largest >= _TOO_LARGE.get(tensor.dtype, mask):
            what = "NaN or infinity" if largest == mask else "a value above a million"
            raise AdapterError(f"{path}: {name} holds {what}. Training diverged, or the file was altered.")


def tensor_digest(path: Path, tensor: StoredTensor) -> str:
    """Hex SHA-256 of a tensor's bytes."""
    whole = hashlib.sha256()
    for piece in _pieces(path, tensor):
        whole.update(piece)
    return whole.hexdigest()


def _pieces(path: Path, tensor: StoredTensor) -> Iterator[bytes]:
    with reading(path), path.open("rb") as file:
        file.seek(tensor.start)
        for start in range(tensor.start, tensor.end, _PIECE):
            yield file.read(min(_PIECE, tensor.end - start))
