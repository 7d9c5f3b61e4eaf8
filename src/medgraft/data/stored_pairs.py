"""Pairs of near-duplicates, stored in the user's cache, so that unchanged images are compared once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable

import numpy as np
import PIL
import scipy
from numpy.typing import NDArray

from medgraft.disk import write_whole
from medgraft.file_index import cache_folder, switched_off

_FORMAT = "near-duplicates 1"  # a new number with each change of what is found


def stored_pairs(
    later: NDArray[np.uint64], earlier: NDArray[np.uint64], find: Callable[[], NDArray[np.intp]]
) -> NDArray[np.intp]:
    """What `find` gives: pairs [N, 2] of rows of `later` and `earlier`, which are digests of the compared images.

    It is not called if the same images were compared before, by the same versions of the libraries.
    """
    if switched_off():
        return find()
    versions = f"{_FORMAT}, Pillow {PIL.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, {len(later)} "
    digest = hashlib.sha256(versions.encode() + later.tobytes() + earlier.tobytes()).hexdigest()
    file = cache_folder() / "near-duplicates" / f"{digest}.json"
    with contextlib.suppress(OSError, ValueError):
        return np.array(json.loads(file.read_text(encoding="utf-8")), dtype=np.intp).reshape(-1, 2)
    pairs = find()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(pairs.tolist()))
    return pairs
