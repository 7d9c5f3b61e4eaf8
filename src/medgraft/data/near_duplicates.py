"""Finds near-duplicates: the same picture saved again, resized, a little cropped or with other grey levels.

They are found on grey thumbnails, without comparing all pairs:

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
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from medgraft.data.images import open_image
from medgraft.file_index import FileIndex, cache_folder, file_state
from medgraft.types import Example, ImageSource

SIDE = 20  # px of the thumbnails that are compared first

_LOW = 5  # frequencies in each direction; the distance between their coefficients is at most that of the thumbnails
_NEIGHBOURS = 4
_NEIGHBOUR_DISTANCE = 0.3  # a thumbnail has length 1
_LIMIT = 0.2  # of the unexplained share
_DETAIL_SIDE, _DETAIL_LIMIT = 64, 0.3
_FLATTEST = 4.0  # grey levels: images with less contrast resemble each other by nature
_AT_ONCE = 1000
_DETAILS_AT_ONCE = 200

Thumbnails = NDArray[np.uint8]  # [N, SIDE, SIDE]
Places = NDArray[np.intp]  # [N], among the examples
Pairs = NDArray[np.intp]  # [N, 2]: places in the later and in the earlier split


def thumbnails_of(images: Sequence[ImageSource], side: int = SIDE) -> Thumbnails:
    """A thumbnail of `side` pixels of every image; those in the file index are not computed."""
    index = FileIndex(f"thumbnail 1, Pillow {PIL.__version__}", cache_folder() / f"thumbnails-{side}")
    known: dict[ImageSource, str] = index.find(images)
    unknown = [image for image in dict.fromkeys(images) if image not in known]
    states = {image: file_state(image) for image in unknown}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        read = pool.map(lambda image: base64.b64encode(_read(image, side)).decode(), unknown)
        made = dict(zip(unknown, read, strict=True))
    index.enter({image: (state, made[image]) for image, state in states.items() if state is not None})
    whole = b"".join(base64.b64decode((made if image in made else known)[image]) for image in images)
    return np.frombuffer(whole, dtype=np.uint8).reshape(len(images), side, side)


def candidates(later: Places, earlier: Places, thumbnails: Thumbnails) -> Pairs:
    """Pairs that pass steps 1 and 2; each place that has some is in one pair at least."""
    low = np.empty((len(thumbnails), _LOW**2 - 1), dtype=np.float32)
    for start in range(0, len(thumbnails), _AT_ONCE):
        low[start : start + _AT_ONCE] = _low_frequencies(thumbnails[start : start + _AT_ONCE])
    later, earlier = (places[~np.isnan(low[places, 0])] for places in (later, earlier))
    forwards = _explained(_neighbours(later, earlier, low), thumbnails.__getitem__, _LIMIT, _AT_ONCE)
    backwards = _neighbours(earlier, np.unique(forwards[:, 0]), low)[:, ::-1]
    backwards = _explained(backwards, thumbnails.__getitem__, _LIMIT, _AT_ONCE)
    return np.unique(np.concatenate([forwards, backwards]), axis=0)


def alike_in_detail(examples: Sequence[Example], pairs: Pairs) -> Pairs:
    """The pairs that pass step 3: images behind one mask, such as a disc, are alike in outline only."""

    def details(places: Places) -> NDArray[np.float32]:
        distinct, rows = np.unique(places, return_inverse=True)
        return _details(thumbnails_of([examples[place].image for place in distinct.tolist()], _DETAIL_SIDE))[rows]

    return _explained(pairs, details, _DETAIL_LIMIT, _DETAILS_AT_ONCE)


def _neighbours(places: Places, others: Places, low: NDArray[np.float32]) -> Pairs:
    """For each of `places` the nearest of the others by their low frequencies."""
    from scipy.spatial import cKDTree

    if not len(places) or not len(others):
        return np.empty((0, 2), dtype=np.intp)
    tree = cKDTree(low[others])
    _, rows = tree.query(low[places], k=_NEIGHBOURS, eps=0.5, distance_upper_bound=_NEIGHBOUR_DISTANCE, workers=-1)
    query, rank = np.nonzero(rows < len(others))  # the tree's size marks a missing neighbour
    return np.stack([places[query], others[rows[query, rank]]], axis=1)


def _low_frequencies(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """The low frequencies but for the mean, of thumbnails scaled to length 1: [N, 24]; NaN for those without contrast."""
    from scipy.fft import dctn

    pixels = thumbnails.astype(np.float32)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(pixels, axis=(1, 2), keepdims=True)
    pixels /= np.where(length < _FLATTEST * SIDE, np.nan, length)
    low: NDArray[np.float32] = dctn(pixels, axes=(1, 2), norm="ortho")[:, :_LOW, :_LOW].reshape(len(pixels), -1)[:, 1:]
    return low


def _explained(pairs: Pairs, pixels: Callable[[Places], NDArray[Any]], limit: float, at_once: int) -> Pairs:
    """The pairs of which each image explains the other, by the `pixels` of the images at some places."""
    chunks = (pairs[start : start + at_once] for start in range(0, len(pairs), at_once))
    passed = [_unexplained(pixels(chunk[:, 0]), pixels(chunk[:, 1])) < limit for chunk in chunks]
    return pairs[np.concatenate(passed)] if passed else pairs


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


def _details(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """Thumbnails without their coarse structure and noise."""
    from scipy.ndimage import gaussian_filter

    pixels = thumbnails.astype(np.float32)
    fine: NDArray[np.float32] = gaussian_filter(pixels, (0, 0.7, 0.7)) - gaussian_filter(pixels, (0, 3, 3))
    return fine


def _read(image: ImageSource, side: int) -> bytes:
    if isinstance(image, Path) and image.suffix.lower() in (".jpg", ".jpeg"):
        with contextlib.suppress(UnidentifiedImageError), Image.open(image) as file:
            file.draft("L", (4 * side, 4 * side))  # decodes a JPEG at a fraction of its size
            return _shrunk(ImageOps.exif_transpose(file), side)
    return _shrunk(open_image(image), side)


def _shrunk(image: Image.Image, side: int) -> bytes:
    return image.convert("L").resize((side, side), Image.Resampling.BILINEAR).tobytes()
