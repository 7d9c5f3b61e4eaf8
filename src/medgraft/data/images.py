"""Reading images: as RGB, and which of many can be read at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from medgraft.errors import DataError

_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)
_QUIET_BELOW = 2000


def open_image(path: Path) -> Image.Image:
    """The image at `path` as RGB; 16-bit greyscale is scaled to its own range. DataError if it cannot be read."""
    try:
        with Image.open(path) as file:
            image: Image.Image = file
            if image.mode.startswith(("I", "F")):
                pixels = np.asarray(image, dtype=np.float32)
                low, high = float(pixels.min()), float(pixels.max())
                image = Image.fromarray(((pixels - low) / max(high - low, 1e-6) * 255).astype(np.uint8))
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"There is no image {path}.") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not an image.") from None
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from None


def check_images(paths: Sequence[Path]) -> tuple[set[Path], set[Path]]:
    """(missing, corrupt) among `paths`; every other one decodes to its last pixel."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        bar = tqdm(pool.map(_state, paths), total=len(paths), desc="checking images", disable=len(paths) < _QUIET_BELOW)
        states = dict(zip(paths, bar, strict=True))
    return {p for p, s in states.items() if s == "missing"}, {p for p, s in states.items() if s == "corrupt"}


def _state(path: Path) -> str:
    if not path.is_file():
        return "missing"
    try:
        with Image.open(path) as image:
            image.draft("L", (64, 64))  # a JPEG is read whole but decoded at an eighth of its size
            image.load()
    except _UNREADABLE:
        return "corrupt"
    return "good"
