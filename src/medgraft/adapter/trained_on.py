"""`trained_on.safetensors`: what an adapter was trained on, as truncated digests of images and of group names.

A sorted set of n digests is stored by their first log2(n) + 24 bits: how many there are for each value of the first log2(n)
bits, and of each the 24 bits that follow. So 65,000 images take 228 KB, and one in ten million other images is taken for one of
them. There are no names in the file, but whoever guesses the name of a patient can test the guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from medgraft.data.images import image_digests
from medgraft.types import Example

TRAINED_ON = "trained_on.safetensors"
_REST = 24  # bits


@dataclass(frozen=True)
class SeenInTraining:
    """How many of `total` images an adapter was trained on, and how many others are of a group that it was trained on."""

    total: int
    images: int
    groups: int

    def __str__(self) -> str:
        more = f", and on patients or articles of {self.groups} more" if self.groups else ""
        return f"The adapter was trained on {self.images} of these {self.total} images{more}."


@dataclass(frozen=True)
class TrainedOn:
    """The truncated digests of the images and group names that an adapter was trained on."""

    tensors: Mapping[str, NDArray[Any]]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> TrainedOn:
        """Of the training examples."""
        groups = {_name_digest(example.group) for example in examples if example.group}
        return cls({**_pack("images", _image_digests(examples)), **_pack("groups", groups)})

    @classmethod
    def read(cls, folder: Path) -> TrainedOn:
        """Of a package that has the file."""
        return cls(load_file(folder / TRAINED_ON))

    def union(self, other: TrainedOn) -> TrainedOn:
        """Of both sets of examples, by the shorter of both sets' digests."""
        names = ("images", "groups")
        return TrainedOn({key: tensor for name in names for key, tensor in self._joined(other, name).items()})

    def _joined(self, other: TrainedOn, name: str) -> dict[str, NDArray[Any]]:
        bits = min(self._bits(name), other._bits(name))
        both = [one._stored(name) >> np.uint64(one._bits(name) - bits) for one in (self, other)]
        return _packed(name, np.unique(np.concatenate(both)), bits)

    def write(self, folder: Path) -> str:
        """Write the file into a package; returns its name."""
        save_file(dict(self.tensors), folder / TRAINED_ON)
        return TRAINED_ON

    def seen(self, examples: Sequence[Example]) -> SeenInTraining:
        """Which of `examples` were trained on."""
        images = self._has("images", list(_image_digests(examples)))
        groups = self._has("groups", [_name_digest(example.group or "") for example in examples])
        return SeenInTraining(len(examples), int(images.sum()), int((groups & ~images).sum()))

    def _bits(self, name: str) -> int:
        return len(self.tensors[f"{name}.counts"]).bit_length() - 1

    def _stored(self, name: str) -> NDArray[np.uint64]:
        counts, rest = self.tensors[f"{name}.counts"], self.tensors[f"{name}.rest"]
        first = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
        stored: NDArray[np.uint64] = first << np.uint64(_REST)
        return stored | (rest.astype(np.uint64) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint64))

    def _has(self, name: str, digests: Sequence[str]) -> NDArray[np.bool_]:
        return np.isin(_prefixes(digests, self._bits(name)), self._stored(name))


def _pack(name: str, digests: Iterable[str]) -> dict[str, NDArray[Any]]:
    distinct = sorted(set(digests))
    bits = max(len(distinct).bit_length() - 1, 0)
    return _packed(name, np.unique(_prefixes(distinct, bits)), bits)


def _packed(name: str, prefixes: NDArray[np.uint64], bits: int) -> dict[str, NDArray[Any]]:
    counts = np.bincount((prefixes >> np.uint64(_REST)).astype(np.intp), minlength=1 << bits)
    counts = counts.astype(np.min_scalar_type(int(counts.max())))  # uint8, unless a small set was joined with a large one
    rest = np.stack([prefixes >> np.uint64(shift) & np.uint64(255) for shift in (16, 8, 0)], axis=1).astype(np.uint8)
    return {f"{name}.counts": counts, f"{name}.rest": rest}


def _prefixes(digests: Sequence[str], bits: int) -> NDArray[np.uint64]:
    whole = np.array([int(digest[:16], 16) for digest in digests], dtype=np.uint64)
    return whole >> np.uint64(64 - _REST - bits)


def _image_digests(examples: Sequence[Example]) -> Iterator[str]:
    for start in range(0, len(examples), 1000):
        images = [example.image for example in examples[start : start + 1000]]
        digests = image_digests(images)
        yield from (digests[image] for image in images)


def _name_digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
