"""Opens images as RGB, and checks many images for readability."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from medgraft.data.augmentation import augmented, without_view
from medgraft.data.members import member_bytes
from medgraft.errors import DataError
from medgraft.file_index import FileIndex, FileState, file_state
from medgraft.types import ImagePart, ImageSource

_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)
_QUIET_BELOW = 2000
_ENTERED_AT_ONCE = 1000  # an interrupted check resumes from there


@dataclass(frozen=True)
class ImageFile:
    """An image file's content: SHA-256 in hex, stored width and height, and the reason if it cannot be decoded.

    `sha256` is None if the file cannot be read, `size` if it cannot be decoded.
    """

    sha256: str | None
    size: tuple[int, int] | None
    problem: str | None = None


def open_image(path: ImageSource) -> Image.Image:
    """The image at `path` as RGB; 16-bit greyscale is scaled from its own minimum and maximum. DataError if unreadable."""
    if isinstance(path, ImagePart) and path.view is not None:
        return augmented(open_image(without_view(path)), path.view)
    try:
        with Image.open(path if isinstance(path, Path) else io.BytesIO(_content(path))) as file:
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


def check_images(paths: Sequence[ImageSource]) -> tuple[set[ImageSource], set[ImageSource]]:
    """(missing, corrupt) among `paths`; every other image decodes completely."""
    found = inspect_images(paths)
    missing = {path for path, image in found.items() if image is None}
    return missing, {path for path, image in found.items() if image is not None and image.problem is not None}


def inspect_images(paths: Sequence[ImageSource]) -> dict[ImageSource, ImageFile | None]:
    """The content of each of `paths`, None where there is no file; images known to the file index are not read.

    The index holds only valid images, since another version or plugin of Pillow may decode the others.
    """
    index = _index()
    files = [path for path in paths if isinstance(path, Path)]
    found: dict[ImageSource, ImageFile | None] = {
        path: ImageFile(known["sha256"], (known["width"], known["height"])) for path, known in index.find(files).items()
    }
    unknown = [path for path in dict.fromkeys(paths) if path not in found]
    entries: dict[Path, tuple[FileState, dict[str, str | int]]] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        read = pool.map(_inspect, unknown)
        quiet = len(unknown) < _QUIET_BELOW
        for path, (image, state) in zip(unknown, tqdm(read, "checking images", len(unknown), disable=quiet), strict=True):
            found[path] = image
            if isinstance(path, Path) and image is not None and image.sha256 and image.size and state is not None:
                entries[path] = state, {"sha256": image.sha256, "width": image.size[0], "height": image.size[1]}
            if len(entries) >= _ENTERED_AT_ONCE:
                index.enter(entries)
                entries = {}
    index.enter(entries)
    return found


def image_digests(paths: Sequence[ImageSource]) -> dict[ImageSource, str]:
    """SHA-256 of each image file's bytes, in hex. DataError if a file cannot be read.

    Images known to the file index are not read.
    """
    files = [path for path in paths if isinstance(path, Path)]
    digests: dict[ImageSource, str] = {path: known["sha256"] for path, known in _index().find(files).items()}
    unknown = [path for path in dict.fromkeys(paths) if path not in digests]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        read = pool.map(_read_digest, unknown)
        bar = tqdm(read, "hashing images", len(unknown), disable=len(unknown) < _QUIET_BELOW)
        return digests | dict(zip(unknown, bar, strict=True))


def _content(image: ImageSource) -> bytes:
    """The encoded image."""
    return image.read_bytes() if isinstance(image, Path) else member_bytes(image)


def _index() -> FileIndex:
    return FileIndex(f"image 1, Pillow {PIL.__version__}")


def _inspect(image_source: ImageSource) -> tuple[ImageFile | None, FileState | None]:
    """The content of an image file, and the file's state from before it was read."""
    path = image_source if isinstance(image_source, Path) else image_source.path
    state = file_state(path)
    if state is None or not path.is_file():
        return None, None
    try:
        content = _content(image_source)
    except OSError as error:  # a disk or permission error
        return ImageFile(None, None, str(error)), None
    digest = hashlib.sha256(content).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            image.draft("L", (64, 64))  # decodes a whole JPEG at an eighth of its size
            image.load()
    except UnidentifiedImageError:
        return ImageFile(digest, None, "Pillow does not recognise its format"), state
    except _UNREADABLE as error:
        return ImageFile(digest, None, str(error)), state
    return ImageFile(digest, size), state


def _read_digest(path: ImageSource) -> str:
    try:
        return hashlib.sha256(_content(path)).hexdigest()
    except OSError as error:
        raise DataError(f"The image {path} cannot be read: {error.strerror or error}.") from None
