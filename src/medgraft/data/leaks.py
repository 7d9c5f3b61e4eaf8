"""Finds images that stand in several splits: byte-equal, nearly equal, or of one patient or article.

Near-duplicates are found on grey thumbnails, without comparing all pairs:

1. the nearest neighbours by the low frequencies of 20 x 20 pixels, in a k-d tree;
2. of these the pairs of which each image is explained by the other, its brightness, contrast and gamma changed and a little
   cropped or shifted, in a linear regression;
3. of these the pairs for which that is so for the fine structure of 64 x 64 pixels too.

Measured on 1,716 chest films, slices and figures (ROCO, clinical notes, VQA-RAD, SLAKE): all copies saved at JPEG quality 70 or
halved in size are found, 99 % of those cropped by 1 % at each edge or brightened by 20 %, 96 % with all of this at once. Of the
1.5 million pairs of these images four copies are below the limits, and neighbouring slices of one scan. The closest pair of
different patients is at twice the last limit.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from medgraft.data.images import image_digests, open_image
from medgraft.file_index import FileIndex, cache_folder, file_state
from medgraft.progress import progress_bar
from medgraft.types import SPLITS, Example, ImageSource, Leak, LeakKind, Split

_SIDE = 20  # px
_LOW = 5  # frequencies in each direction; the distance between their coefficients is at most that of the thumbnails
_NEIGHBOURS = 4
_NEIGHBOUR_DISTANCE = 0.3  # a thumbnail has length 1
_LIMIT = 0.2  # of the unexplained share
_DETAIL_SIDE, _DETAIL_LIMIT = 64, 0.3
_FLATTEST = 4.0  # grey levels: images with less contrast are like each other by nature
_AT_ONCE = 1000
_EXAMPLES = 8  # of a leak

Thumbnails = NDArray[np.uint8]  # [N, 20, 20]
Places = NDArray[np.intp]  # [N], among the examples
Pairs = NDArray[np.intp]  # [N, 2]: places in the later and in the earlier split


@dataclass(frozen=True)
class Leaks:
    """The leaks found, and the place among the examples of every image that gives away one of a later split."""

    found: tuple[Leak, ...] = ()
    leaking: frozenset[int] = frozenset()


def find_leaks(examples: Sequence[Example], *, near_duplicates: bool = True) -> Leaks:
    """The leaks between the splits of `examples`; train is earlier than validation, and validation than test.

    An image counts once a kind and pair of splits; byte-equal images are no near-duplicates, which are not looked for if
    `near_duplicates` is false. Thumbnails are kept in the file index, so that unchanged images are read once.
    """
    keys = _keys(examples, near_duplicates)
    present = [split for split, places in keys.places.items() if len(places)]
    found, leaking = [], set[int]()
    for other, split in itertools.combinations(present, 2):
        for kind, pairs in keys.pairs(split, other, examples):
            if len(pairs):
                images, first = np.unique(pairs[:, 0], return_index=True)
                shown = tuple((examples[a].id, examples[b].id) for a, b in pairs[first[:_EXAMPLES]].tolist())
                found.append(Leak(kind, split, other, len(images), shown))
                leaking |= set(pairs[:, 1].tolist())
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
            near = _near_duplicates(later, earlier, self.thumbnails)
            near = near[self.images[near[:, 0]] != self.images[near[:, 1]]]
            yield "near_duplicate", _alike_in_detail(examples, near)
        yield "group", _same(later, earlier, self.groups)


def _keys(examples: Sequence[Example], with_thumbnails: bool) -> _Keys:
    size = len(examples)
    places: dict[Split, array[int]] = {split: array("I") for split in SPLITS}
    images, groups = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.uint64)
    thumbnails = np.zeros((size, _SIDE, _SIDE), dtype=np.uint8) if with_thumbnails else None
    with progress_bar(desc="comparing images", unit="image", total=size, least=2 * _AT_ONCE) as bar:
        for start in range(0, size, _AT_ONCE):
            chunk = examples[start : start + _AT_ONCE]
            digests = image_digests([example.image for example in chunk])
            for place, example in enumerate(chunk, start):
                places[example.split].append(place)
                images[place] = int(digests[example.image][:16], 16)
                groups[place] = int(hashlib.sha256(example.group.encode()).hexdigest()[:16], 16) if example.group else 0
            if thumbnails is not None:
                thumbnails[start : start + len(chunk)] = _thumbnails([example.image for example in chunk], _SIDE)
            bar.update(len(chunk))
    return _Keys({split: np.array(found, dtype=np.intp) for split, found in places.items()}, images, groups, thumbnails)


def _same(later: Places, earlier: Places, keys: NDArray[np.uint64]) -> Pairs:
    """Pairs of places with the same key, 0 aside: each place that has a counterpart is in one pair at least."""
    return np.unique(np.concatenate([_first_same(later, earlier, keys), _first_same(earlier, later, keys)[:, ::-1]]), axis=0)


def _first_same(places: Places, others: Places, keys: NDArray[np.uint64]) -> Pairs:
    values, first = np.unique(keys[others], return_index=True)
    nearest = np.searchsorted(values, keys[places]).clip(max=len(values) - 1)
    rows = np.flatnonzero((values[nearest] == keys[places]) & (keys[places] != 0))
    return np.stack([places[rows], others[first[nearest[rows]]]], axis=1)


def _near_duplicates(later: Places, earlier: Places, thumbnails: Thumbnails) -> Pairs:
    """Candidates for near-duplicates: each place that has some is in one pair at least."""
    low = np.empty((len(thumbnails), _LOW**2 - 1), dtype=np.float32)
    for start in range(0, len(thumbnails), _AT_ONCE):
        low[start : start + _AT_ONCE] = _low_frequencies(thumbnails[start : start + _AT_ONCE])
    later, earlier = (places[~np.isnan(low[places, 0])] for places in (later, earlier))
    forwards = _verified(thumbnails, _neighbours(later, earlier, low))
    backwards = _verified(thumbnails, _neighbours(earlier, np.unique(forwards[:, 0]), low)[:, ::-1])
    return np.unique(np.concatenate([forwards, backwards]), axis=0)


def _neighbours(places: Places, others: Places, low: NDArray[np.float32]) -> Pairs:
    """For each of `places` the nearest of the others by their low frequencies."""
    if not len(places) or not len(others):
        return np.empty((0, 2), dtype=np.intp)
    tree = cKDTree(low[others])
    _, rows = tree.query(low[places], k=_NEIGHBOURS, eps=0.5, distance_upper_bound=_NEIGHBOUR_DISTANCE, workers=-1)
    query, rank = np.nonzero(rows < len(others))  # the tree's size stands for none
    return np.stack([places[query], others[rows[query, rank]]], axis=1)


def _low_frequencies(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """The low frequencies but for the mean, of thumbnails scaled to length 1: [N, 24]; NaN for those without contrast."""
    pixels = thumbnails.astype(np.float32)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(pixels, axis=(1, 2), keepdims=True)
    pixels /= np.where(length < _FLATTEST * _SIDE, np.nan, length)
    low: NDArray[np.float32] = dctn(pixels, axes=(1, 2), norm="ortho")[:, :_LOW, :_LOW].reshape(len(pixels), -1)[:, 1:]
    return low


def _verified(thumbnails: Thumbnails, pairs: Pairs) -> Pairs:
    """The pairs of which each image explains the other."""
    kept = [_unexplained(thumbnails[a], thumbnails[b]) < _LIMIT for a, b in _chunks(pairs, _AT_ONCE)]
    return pairs[np.concatenate(kept)] if kept else pairs


def _chunks(pairs: Pairs, size: int) -> Iterator[Pairs]:
    return (pairs[i : i + size].T for i in range(0, len(pairs), size))


def _unexplained(images: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float32]:
    """The share of each image that its counterpart does not explain, in the worse direction: [N], of 1.

    It is the ratio of standard deviations. A small shift or change of scale adds to an image its derivatives, plain or times
    the distance from the centre.
    """
    edge = images.shape[1] // 10  # shows what a crop took away
    inner = slice(edge, -edge)
    centred = np.linspace(-1, 1, images.shape[1], dtype=np.float32)
    shares = []
    for explaining, explained in ((images, others), (others, images)):
        pixels = explaining.astype(np.float32)
        down, right = (np.gradient(pixels, axis=axis) for axis in (1, 2))
        parts = (pixels, pixels**2 / 255, down, right, down * centred[:, None], right * centred)
        terms = np.stack([part[:, inner, inner].reshape(len(pixels), -1) for part in parts], axis=1)  # [N, 6, P]
        wanted = explained[:, inner, inner].reshape(len(pixels), -1).astype(np.float32)
        terms -= terms.mean(axis=2, keepdims=True)
        wanted -= wanted.mean(axis=1, keepdims=True)
        terms /= np.maximum(np.linalg.norm(terms, axis=2, keepdims=True), 1e-6)
        products = terms @ terms.transpose(0, 2, 1) + 1e-5 * np.eye(len(parts), dtype=np.float32)  # some terms may be alike
        weights = np.linalg.solve(products, terms @ wanted[:, :, None])
        rest = wanted - (weights.transpose(0, 2, 1) @ terms)[:, 0]
        shares.append(np.linalg.norm(rest, axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), 1e-6))
    worse: NDArray[np.float32] = np.maximum(*shares)
    return worse


def _alike_in_detail(examples: Sequence[Example], pairs: Pairs) -> Pairs:
    """The pairs that are alike in their fine structure too: images behind one mask, such as a disc, are so in outline alone."""
    kept = []
    for chunk in _chunks(pairs, 200):
        sides = [_details(_thumbnails([examples[place].image for place in places], _DETAIL_SIDE)) for places in chunk.tolist()]
        kept.append(_unexplained(sides[0], sides[1]) < _DETAIL_LIMIT)
    return pairs[np.concatenate(kept)] if kept else pairs


def _details(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """Thumbnails without their coarse structure and noise."""
    pixels = thumbnails.astype(np.float32)
    fine: NDArray[np.float32] = gaussian_filter(pixels, (0, 0.7, 0.7)) - gaussian_filter(pixels, (0, 3, 3))
    return fine


def _thumbnails(images: Sequence[ImageSource], side: int) -> Thumbnails:
    """A thumbnail of `side` pixels of every image; those in the file index are not computed."""
    index = FileIndex(f"thumbnail 1, Pillow {PIL.__version__}", cache_folder() / f"thumbnails-{side}")
    known: dict[ImageSource, str] = index.find(images)
    unknown = [image for image in dict.fromkeys(images) if image not in known]
    states = {image: file_state(image if isinstance(image, Path) else image.path) for image in unknown}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        read = pool.map(lambda image: base64.b64encode(_read(image, side)).decode(), unknown)
        made = dict(zip(unknown, read, strict=True))
    index.enter({image: (state, made[image]) for image, state in states.items() if state is not None})
    whole = b"".join(base64.b64decode((made if image in made else known)[image]) for image in images)
    return np.frombuffer(whole, dtype=np.uint8).reshape(len(images), side, side)


def _read(image: ImageSource, side: int) -> bytes:
    if isinstance(image, Path) and image.suffix.lower() in (".jpg", ".jpeg"):
        with contextlib.suppress(UnidentifiedImageError), Image.open(image) as file:
            file.draft("L", (4 * side, 4 * side))  # decodes a JPEG at a fraction of its size
            return _shrunk(ImageOps.exif_transpose(file), side)
    return _shrunk(open_image(image), side)


def _shrunk(image: Image.Image, side: int) -> bytes:
    return image.convert("L").resize((side, side), Image.Resampling.BILINEAR).tobytes()
