"""Work on the images of a data set, some at a time: which are usable, and the fingerprint of the data."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence

from medgraft.data.images import CheckedImages, check_images, image_digests
from medgraft.progress import progress_bar
from medgraft.types import SPLITS, Example, ImageSource, Split

_CHUNK = 1000  # images checked or hashed at once


def data_fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 over ids, splits, captions, prompts and image bytes; it does not depend on the data's location."""
    ids: dict[Split, list[tuple[str, int]]] = {split: [] for split in sorted(SPLITS)}
    for place, example in enumerate(examples):
        ids[example.split].append((example.id, place))
    order = array("I", (place for listed in ids.values() for _, place in sorted(listed)))
    del ids
    whole = hashlib.sha256()
    for places in _chunks(order, "hashing images"):
        chunk = [examples[place] for place in places]
        digests = image_digests([image for example in chunk for image in example.images])
        for example in chunk:
            prompt = () if example.prompt is None else ("", example.prompt)
            whole.update("\0".join((example.id, example.split, *example.captions, *prompt)).encode())
            for image in example.images:
                whole.update(bytes.fromhex(digests[image]))
    return whole.hexdigest()


def usable_images(
    examples: Sequence[Example], captioned: Mapping[Split, array[int]], limit: int | None
) -> tuple[array[int], CheckedImages]:
    """The places of the first `limit` examples of each split whose images are usable, and what the check of images found."""
    missing: set[ImageSource] = set()
    unreadable: dict[ImageSource, str] = {}
    notes: dict[ImageSource, str] = {}
    usable = array("I")
    for split, places in captioned.items():
        left, good = places, 0
        while left and (limit is None or good < limit):
            size = len(left) if limit is None else limit - good
            now, left = left[:size], left[size:]
            for chunk in _chunks(now, f"checking {split} images"):
                images = [examples[place].images for place in chunk]
                checked = check_images([image for of_example in images for image in of_example])
                missing |= checked.missing
                unreadable |= checked.unreadable
                notes |= checked.notes
                bad = checked.missing | checked.unreadable.keys()
                found = [place for place, of_example in zip(chunk, images, strict=True) if bad.isdisjoint(of_example)]
                usable.extend(found)
                good += len(found)
    return usable, CheckedImages(frozenset(missing), unreadable, notes)


def _chunks(places: Sequence[int], what: str) -> Iterator[Sequence[int]]:
    """`places` in pieces, whose examples are in memory together, with a progress bar if there are many."""
    with progress_bar(desc=what, unit="image", total=len(places), least=2 * _CHUNK) as bar:
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            yield chunk
            bar.update(len(chunk))
