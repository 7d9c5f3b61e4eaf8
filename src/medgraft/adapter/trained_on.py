"""`trained_on.safetensors`: what an adapter was trained on, as truncated digests of images and of group names.

A sorted set of n digests is stored by their first log2(n) + 24 bits: how many there are for each value of the first log2(n)
bits, and of each the 24 bits that follow. So 65,000 images take 228 KB, and one in ten million other images is taken for one of
them. There are no names in the file, but whoever guesses the name of a patient can test the guess.

An adapter that training went on from has sets of its own, since its digests are truncated already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from medgraft.adapter.manifest import TRAINED_ON
from medgraft.data.images import image_digests
from medgraft.each_image import EachImage
from medgraft.errors import AdapterError
from medgraft.types import Example

_REST = 24  # bits
_UNKNOWN = "unknown"  # a tensor that stands for images that are not listed


@dataclass(frozen=True)
class SeenInTraining:
    """How many of `total` images an adapter was trained on, and how many others are of a group that it was trained on.

    `complete` is false if training started from an adapter that does not list its images.
    """

    total: int
    images: int
    groups: int
    complete: bool = True

    def __str__(self) -> str:
        more = f", and on patients or articles of {self.groups} more" if self.groups else ""
        unknown = "" if self.complete else " It started from an adapter that does not list its images."
        return f"The adapter was trained on {self.images} of these {self.total} images{more}.{unknown}"


@dataclass(frozen=True)
class TrainedOn:
    """The truncated digests of the images and group names that an adapter was trained on."""

    tensors: Mapping[str, NDArray[np.uint8]]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> TrainedOn:
        """Of the training examples."""
        groups = {_name_digest(example.group) for example in examples if example.group}
        return cls({**_pack("images", _image_digests(examples)), **_pack("groups", groups)})

    @classmethod
    def read(cls, folder: Path) -> TrainedOn:
        """Of a package that has the file; AdapterError if it is not as `write` made it."""
        tensors = load_file(folder / TRAINED_ON)
        for name in ("images", "groups"):
            empty = np.zeros(0)
            counts, rest = tensors.get(f"{name}.counts", empty), tensors.get(f"{name}.rest", empty)
            sound = counts.ndim == 1 and counts.size.bit_count() == 1 and {counts.dtype, rest.dtype} == {np.dtype(np.uint8)}
            if not sound or rest.shape != (int(counts.sum()), 3):
                raise AdapterError(f"{folder / TRAINED_ON} does not list {name} as medgraft does. Copy the adapter again.")
        return cls(tensors)

    def write(self, folder: Path) -> str:
        """Write the file into a package; returns its name."""
        save_file(dict(self.tensors), folder / TRAINED_ON)
        return TRAINED_ON

    def seen(self, examples: Sequence[Example]) -> SeenInTraining:
        """Which images of `examples` were trained on."""
        examples = list({example.image: example for example in EachImage.of(examples)}.values())  # whatever was asked of it
        images = self._has("images", list(_image_digests(examples)))
        groups = self._has("groups", [_name_digest(example.group or "") for example in examples])
        return SeenInTraining(len(examples), int(images.sum()), int((groups & ~images).sum()), _UNKNOWN not in self.tensors)

    def after(self, earlier: TrainedOn | None) -> TrainedOn:
        """These, and what the adapter was trained on `earlier`; None if that is unknown."""
        if earlier is None:
            return TrainedOn({**self.tensors, _UNKNOWN: np.ones(1, dtype=np.uint8)})
        tensors = dict(self.tensors)
        tensors |= {name: tensor for name, tensor in earlier.tensors.items() if name == _UNKNOWN}
        for kind in ("images", "groups"):
            lacking = [name for name in earlier._sets(kind) if not self._covers(kind, *earlier._stored(name))]
            for number, name in enumerate(lacking, start=1):
                tensors |= {f"{number}.{kind}.{half}": earlier.tensors[f"{name}.{half}"] for half in ("counts", "rest")}
        return TrainedOn(tensors)

    def _sets(self, kind: str) -> list[str]:
        """The names of the sets of images or of groups."""
        ends = f"{kind}.counts"
        return [name.removesuffix(".counts") for name in self.tensors if name == ends or name.endswith(f".{ends}")]

    def _stored(self, name: str) -> tuple[NDArray[np.uint64], int]:
        """The truncated digests of a set, and how many bits precede the last 24."""
        counts, rest = self.tensors[f"{name}.counts"], self.tensors[f"{name}.rest"]
        first = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
        stored = (first << np.uint64(_REST)) | (rest.astype(np.uint64) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint64))
        return stored, len(counts).bit_length() - 1

    def _covers(self, name: str, stored: NDArray[np.uint64], bits: int) -> bool:
        """Whether the set `name` has all digests of another one."""
        mine, my_bits = self._stored(name)
        return my_bits >= bits and bool(np.isin(stored, mine >> np.uint64(my_bits - bits)).all())

    def _has(self, kind: str, digests: Sequence[str]) -> NDArray[np.bool_]:
        found = np.zeros(len(digests), dtype=np.bool_)
        for stored, bits in map(self._stored, self._sets(kind)):
            found |= np.isin(_prefixes(digests, bits), stored)
        return found


def _pack(name: str, digests: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
    distinct = sorted(set(digests))
    bits = max(len(distinct).bit_length() - 1, 0)
    prefixes = np.unique(_prefixes(distinct, bits))
    counts = np.bincount((prefixes >> np.uint64(_REST)).astype(np.intp), minlength=1 << bits).astype(np.uint8)
    rest = np.stack([prefixes >> np.uint64(shift) & np.uint64(255) for shift in (16, 8, 0)], axis=1).astype(np.uint8)
    return {f"{name}.counts": counts, f"{name}.rest": rest}


def _prefixes(digests: Sequence[str], bits: int) -> NDArray[np.uint64]:
    whole = np.array([int(digest[:16], 16) for digest in digests], dtype=np.uint64)
    return whole >> np.uint64(64 - _REST - bits)


def _image_digests(examples: Sequence[Example]) -> Iterator[str]:
    for start in range(0, len(examples), 1000):
        images = [image for example in examples[start : start + 1000] for image in example.images]
        digests = image_digests(images)
        yield from (digests[image] for image in images)


def _name_digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
