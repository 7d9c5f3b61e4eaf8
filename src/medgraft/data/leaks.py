"""Finds images that occur in several splits: byte-equal, near-duplicates, or of one patient or article."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medgraft.data.images import image_digests
from medgraft.data.near_duplicates import SIDE, Pairs, Places, Thumbnails, alike_in_detail, candidates, thumbnails_of
from medgraft.data.stored_pairs import stored_pairs
from medgraft.each_image import EachImage
from medgraft.progress import progress_bar
from medgraft.types import SPLITS, Example, Leak, LeakKind, Split

_AT_ONCE = 1000
_EXAMPLES = 8  # of a leak


@dataclass(frozen=True)
class Leaks:
    """The leaks found, and the place of every example of which an image has a counterpart in a later split."""

    found: tuple[Leak, ...] = ()
    leaking: frozenset[int] = frozenset()


def find_leaks(examples: Sequence[Example], *, near_duplicates: bool = True) -> Leaks:
    """The leaks between the splits of `examples`; train is earlier than validation, and validation than test.

    An image counts once a kind and pair of splits; byte-equal images are no near-duplicates, which are not looked for if
    `near_duplicates` is false. Thumbnails and near-duplicates are stored, so that unchanged images are read and compared once.
    """
    if len({example.split for example in examples}) < 2:
        return Leaks()
    images = EachImage.of(examples)
    keys = _keys(images, near_duplicates)
    present = [split for split, places in keys.places.items() if len(places)]
    found, leaking = [], set[int]()
    for other, split in itertools.combinations(present, 2):
        for kind, pairs in keys.pairs(split, other, images):
            if len(pairs):
                rows, first = np.unique(pairs[:, 0], return_index=True)
                different = {images[row].image for row in rows.tolist()}  # of which several questions may be asked
                shown = tuple((images[a].id, images[b].id) for a, b in pairs[first[:_EXAMPLES]].tolist())
                found.append(Leak(kind, split, other, len(different), shown))
                leaking |= {images.places[row] for row in pairs[:, 1].tolist()}
    return Leaks(tuple(found), frozenset(leaking))


@dataclass(frozen=True)
class _Keys:
    """By place among the examples: digests of images and groups, cut to 64 bits (0: none), and thumbnails if wanted."""

    places: Mapping[Split, Places]
    images: NDArray[np.uint64]
    groups: NDArray[np.uint64]
    thumbnails: Thumbnails | None

    def pairs(self, split: Split, other: Split, examples: Sequence[Example]) -> Iterator[tuple[LeakKind, Pairs]]:
        """The pairs of places that leak from `split` into the earlier `other`, by kind."""
        later, earlier = self.places[split], self.places[other]
        yield "byte_equal", _same(later, earlier, self.images)
        if self.thumbnails is not None:
            near = self._near(later, earlier, self.thumbnails, examples)
            yield "near_duplicate", _with_equal(near, later, earlier, self.images)
        yield "group", _same(later, earlier, self.groups)

    def _near(self, later: Places, earlier: Places, thumbnails: Thumbnails, examples: Sequence[Example]) -> Pairs:
        """Pairs of near-duplicates, of each image the first place."""
        later, earlier = (_distinct(places, self.images) for places in (later, earlier))

        def find() -> Pairs:
            near = candidates(later, earlier, thumbnails)
            near = alike_in_detail(examples, near[self.images[near[:, 0]] != self.images[near[:, 1]]])
            return np.stack([np.searchsorted(later, near[:, 0]), np.searchsorted(earlier, near[:, 1])], axis=1)

        rows = stored_pairs(self.images[later], self.images[earlier], find)
        return np.stack([later[rows[:, 0]], earlier[rows[:, 1]]], axis=1)


def _keys(examples: Sequence[Example], with_thumbnails: bool) -> _Keys:
    size = len(examples)
    places: dict[Split, array[int]] = {split: array("I") for split in SPLITS}
    images, groups = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.uint64)
    thumbnails = np.zeros((size, SIDE, SIDE), dtype=np.uint8) if with_thumbnails else None
    with progress_bar(desc="comparing images", unit="image", total=size, least=2 * _AT_ONCE) as bar:
        for start in range(0, size, _AT_ONCE):
            chunk = examples[start : start + _AT_ONCE]
            digests = image_digests([example.image for example in chunk])
            for place, example in enumerate(chunk, start):
                places[example.split].append(place)
                images[place] = int(digests[example.image][:16], 16)
                groups[place] = int(hashlib.sha256(example.group.encode()).hexdigest()[:16], 16) if example.group else 0
            if thumbnails is not None:
                thumbnails[start : start + len(chunk)] = thumbnails_of([example.image for example in chunk])
            bar.update(len(chunk))
    return _Keys({split: np.array(found, dtype=np.intp) for split, found in places.items()}, images, groups, thumbnails)


def _distinct(places: Places, keys: NDArray[np.uint64]) -> Places:
    """The first of the places with each key, so that no image is compared twice, whatever is asked of it."""
    return np.sort(places[np.unique(keys[places], return_index=True)[1]])


def _with_equal(pairs: Pairs, later: Places, earlier: Places, keys: NDArray[np.uint64]) -> Pairs:
    """`pairs` of distinct images, and one more for each other place with the key of one of them."""
    found = [pairs]
    for column, places in enumerate((later, earlier)):
        row_of = {key: row for row, key in enumerate(keys[pairs[:, column]].tolist())}
        others = places[np.isin(keys[places], keys[pairs[:, column]])]
        more = pairs[[row_of[key] for key in keys[others].tolist()]]
        more[:, column] = others
        found.append(more)
    return np.unique(np.concatenate(found), axis=0)


def _same(later: Places, earlier: Places, keys: NDArray[np.uint64]) -> Pairs:
    """Pairs of places with the same key, 0 aside: each place that has a counterpart is in one pair at least."""
    return np.unique(np.concatenate([_first_same(later, earlier, keys), _first_same(earlier, later, keys)[:, ::-1]]), axis=0)


def _first_same(places: Places, others: Places, keys: NDArray[np.uint64]) -> Pairs:
    values, first = np.unique(keys[others], return_index=True)
    nearest = np.searchsorted(values, keys[places]).clip(max=len(values) - 1)
    rows = np.flatnonzero((values[nearest] == keys[places]) & (keys[places] != 0))
    return np.stack([places[rows], others[first[nearest[rows]]]], axis=1)
