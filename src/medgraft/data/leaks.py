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
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from tqdm import tqdm

from medgraft.data.images import image_digests, open_image
from medgraft.file_index import FileIndex, cache_folder, file_state
from medgraft.types import SPLITS, Example, ImageSource, Leak

_SIDE = 20  # px
_LOW = 5  # frequencies in each direction; the distance between their coefficients is at most that of the thumbnails
_NEIGHBOURS = 4
_NEIGHBOUR_DISTANCE = 0.3  # a thumbnail has length 1
_LIMIT = 0.2  # of the unexplained share
_DETAIL_SIDE, _DETAIL_LIMIT = 64, 0.3
_FLATTEST = 4.0  # grey levels: images with less contrast are like each other by nature
_AT_ONCE = 2000
_QUIET_BELOW = 2000

Thumbnails = NDArray[np.uint8]  # [N, 20, 20]
Pairs = NDArray[np.intp]  # [N, 2]: rows of the later and of the earlier split


@dataclass(frozen=True)
class Leaks:
    """The leaks found, and the (split, id) of every image of an earlier split that gives away one of a later split."""

    found: tuple[Leak, ...] = ()
    leaking: frozenset[tuple[str, str]] = frozenset()


def find_leaks(examples: Sequence[Example], *, near_duplicates: bool = True) -> Leaks:
    """The leaks between the splits of `examples`; train is earlier than validation, and validation than test.

    An image counts once a kind and pair of splits; byte-equal images are no near-duplicates, which are not looked for if
    `near_duplicates` is false. Thumbnails are kept in the file index, so that unchanged images are read once.
    """
    present = [split for split in SPLITS if any(example.split == split for example in examples)]
    if len(present) < 2:
        return Leaks()
    digests = image_digests([example.image for example in examples])
    thumbnails = _thumbnails([example.image for example in examples], _SIDE) if near_duplicates else None
    rows = {split: [row for row, example in enumerate(examples) if example.split == split] for split in present}
    found, leaking = [], set[tuple[str, str]]()
    for other, split in itertools.combinations(present, 2):
        earlier, later = [examples[row] for row in rows[other]], [examples[row] for row in rows[split]]
        equal = _same([digests[e.image] for e in later], [digests[e.image] for e in earlier])
        near = equal[:0]
        if thumbnails is not None:
            near = _near_duplicates(thumbnails[rows[split]], thumbnails[rows[other]])
            different = [digests[later[a].image] != digests[earlier[b].image] for a, b in near]
            near = _alike_in_detail([e.image for e in later], [e.image for e in earlier], near[np.array(different, dtype=bool)])
        group = _same([e.group for e in later], [e.group for e in earlier])
        for kind, pairs in (("byte_equal", equal), ("near_duplicate", near), ("group", group)):
            if len(pairs):
                a, b = pairs[0]
                images = len(np.unique(pairs[:, 0]))
                found.append(Leak(kind, split, other, images, (later[a].id, earlier[b].id)))  # type: ignore[arg-type]
                leaking |= {(other, earlier[row].id) for row in np.unique(pairs[:, 1])}
    return Leaks(tuple(found), frozenset(leaking))


def _same(later: Sequence[str | None], earlier: Sequence[str | None]) -> Pairs:
    """Pairs of rows with the same key, None and blank aside: each row that has a counterpart is in one pair at least."""
    first_later, first_earlier = ({key: row for row, key in reversed(list(enumerate(keys)))} for keys in (later, earlier))
    pairs = [(row, first_earlier[key]) for row, key in enumerate(later) if key and key in first_earlier]
    pairs += [(first_later[key], row) for row, key in enumerate(earlier) if key and key in first_later]
    return np.array(sorted(set(pairs)), dtype=np.intp).reshape(-1, 2)


def _near_duplicates(later: Thumbnails, earlier: Thumbnails) -> Pairs:
    """Pairs of near-duplicates: each row that has one is in one pair at least."""
    a, b = (np.flatnonzero(each.std(axis=(1, 2)) >= _FLATTEST) for each in (later, earlier))
    forwards = _verified(later, earlier, _neighbours(later, a, earlier, b))
    matched = np.unique(forwards[:, 0])
    backwards = _verified(later, earlier, _neighbours(earlier, b, later, matched)[:, ::-1])
    return np.unique(np.concatenate([forwards, backwards]), axis=0)


def _neighbours(queries: Thumbnails, asked: Pairs, others: Thumbnails, among: Pairs) -> Pairs:
    """For each of the rows `asked` its nearest rows `among` the others."""
    if not len(asked) or not len(among):
        return np.empty((0, 2), dtype=np.intp)
    tree = cKDTree(_low_frequencies(others[among]))
    wanted = _low_frequencies(queries[asked])
    _, rows = tree.query(wanted, k=_NEIGHBOURS, eps=0.5, distance_upper_bound=_NEIGHBOUR_DISTANCE, workers=-1)
    query, place = np.nonzero(rows < len(among))  # the tree's size stands for none
    return np.stack([asked[query], among[rows[query, place]]], axis=1)


def _low_frequencies(thumbnails: Thumbnails) -> NDArray[np.float64]:
    """The low frequencies but for the mean, of thumbnails scaled to length 1: [N, 24]."""
    pixels = thumbnails.astype(np.float32)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    pixels /= np.linalg.norm(pixels, axis=(1, 2), keepdims=True)
    low: NDArray[np.float64] = dctn(pixels, axes=(1, 2), norm="ortho")[:, :_LOW, :_LOW].reshape(len(pixels), -1)[:, 1:]
    return low


def _verified(later: Thumbnails, earlier: Thumbnails, pairs: Pairs) -> Pairs:
    """The pairs of which each image explains the other."""
    kept = [_unexplained(later[a], earlier[b]) < _LIMIT for a, b in _chunks(pairs, 2000)]
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


def _alike_in_detail(later: Sequence[ImageSource], earlier: Sequence[ImageSource], pairs: Pairs) -> Pairs:
    """The pairs that are alike in their fine structure too: images behind one mask, such as a disc, are so in outline alone."""
    rows = [np.unique(pairs[:, 0]), np.unique(pairs[:, 1])]
    details = [
        _details(_thumbnails([images[row] for row in own], _DETAIL_SIDE))
        for images, own in zip((later, earlier), rows, strict=True)
    ]
    kept = [
        _unexplained(details[0][np.searchsorted(rows[0], a)], details[1][np.searchsorted(rows[1], b)]) < _DETAIL_LIMIT
        for a, b in _chunks(pairs, 200)
    ]
    return pairs[np.concatenate(kept)] if kept else pairs


def _details(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """Thumbnails without their coarse structure and noise."""
    pixels = thumbnails.astype(np.float32)
    fine: NDArray[np.float32] = gaussian_filter(pixels, (0, 0.7, 0.7)) - gaussian_filter(pixels, (0, 3, 3))
    return fine


def _thumbnails(images: Sequence[ImageSource], side: int) -> Thumbnails:
    """A thumbnail of `side` pixels of every image; those in the file index are not computed."""
    index = FileIndex(f"thumbnail 1, Pillow {PIL.__version__}", cache_folder() / "thumbnails")  # an index has one kind a file
    files, keys = [_file(image) for image in images], [_key(image, side) for image in images]
    rows_of: dict[Path, list[int]] = defaultdict(list)
    for row, file in enumerate(files):
        rows_of[file].append(row)
    distinct, found = list(rows_of), np.empty((len(images), side * side), dtype=np.uint8)
    bar = tqdm(total=len(images), desc="comparing images", disable=len(images) < _QUIET_BELOW)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool, bar:
        for chunk in (distinct[i : i + _AT_ONCE] for i in range(0, len(distinct), _AT_ONCE)):
            known: dict[Path, dict[str, str]] = index.find(chunk)
            rows = [row for file in chunk for row in rows_of[file]]
            unknown = [row for row in rows if keys[row] not in known.get(files[row], {})]
            states = {file: file_state(file) for file in dict.fromkeys(files[row] for row in unknown)}
            for row, made in zip(unknown, pool.map(lambda row: _read(images[row], side), unknown), strict=True):
                known.setdefault(files[row], {})[keys[row]] = base64.b64encode(made).decode()
            index.enter({file: (state, known[file]) for file, state in states.items() if state is not None})
            for row in rows:
                found[row] = np.frombuffer(base64.b64decode(known[files[row]][keys[row]]), dtype=np.uint8)
            bar.update(len(rows))
    return found.reshape(-1, side, side)


def _file(image: ImageSource) -> Path:
    return image if isinstance(image, Path) else image.path


def _key(image: ImageSource, side: int) -> str:
    """What tells a thumbnail from others of the same file."""
    return f"{side}" if isinstance(image, Path) else f"{side} {image.member} {image.frame} {image.window}"


def _read(image: ImageSource, side: int) -> bytes:
    if isinstance(image, Path):
        with Image.open(image) as file:
            if file.format == "JPEG":
                file.draft("L", (4 * side, 4 * side))  # decodes it at a fraction of its size
                return _shrunk(ImageOps.exif_transpose(file), side)
    return _shrunk(open_image(image), side)


def _shrunk(image: Image.Image, side: int) -> bytes:
    return image.convert("L").resize((side, side), Image.Resampling.BILINEAR).tobytes()
