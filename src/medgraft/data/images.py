"""Opens images of any kind as RGB, and checks many images for readability."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import PIL
from PIL import Image

from medgraft.data.augmentation import augmented, without_view
from medgraft.data.decoded import DecodedImage, ImageError
from medgraft.data.dicom import dicom_mode, is_dicom, read_dicom
from medgraft.data.file_kinds import what_it_is
from medgraft.data.members import member_bytes
from medgraft.data.pictures import inspect_picture, read_picture
from medgraft.data.volumes import is_gzip, is_nifti, read_nifti
from medgraft.errors import DataError
from medgraft.file_index import FileIndex, FileState, file_state
from medgraft.types import ImagePart, ImageSource

_Reader: TypeAlias = Callable[[BinaryIO, int | None, str], DecodedImage]

_HEAD_BYTES = 512  # enough to recognise a format


@dataclass(frozen=True)
class ImageFile:
    """An image's digest, its width and height as it is shown, and the reason if it cannot be shown.

    `sha256` is None if the file cannot be read, `size` if it cannot be shown. `note` names a choice that the file left open.
    """

    sha256: str | None
    size: tuple[int, int] | None
    problem: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class CheckedImages:
    """What a check found: missing images, the reasons of those that cannot be shown, and notes on the others."""

    missing: frozenset[ImageSource]
    unreadable: Mapping[ImageSource, str]
    notes: Mapping[ImageSource, str]


def open_image(image: ImageSource) -> Image.Image:
    """The image as RGB: turned by its EXIF orientation, transparency over black, 16 bits, DICOM and NIfTI in their window.

    It has no metadata, and is augmented if it is a view. DataError if it cannot be read.
    """
    part = _part(image)
    if part.view is not None:
        return augmented(open_image(without_view(image)), part.view)
    try:
        with _opened(part) as file:
            return _reader(file)(file, part.frame, part.window or "auto").image
    except FileNotFoundError:
        raise DataError(f"There is no image {image}.") from None
    except IsADirectoryError:
        raise DataError(f"{image} is a folder, not an image.") from None
    except (ImageError, OSError) as error:
        raise DataError(f"{image} cannot be read as an image: {error}.") from None


def check_images(images: Sequence[ImageSource]) -> CheckedImages:
    """Check each of `images`; those that are neither missing nor unreadable decode completely."""
    found = inspect_images(images)
    return CheckedImages(
        frozenset(image for image, file in found.items() if file is None),
        {image: file.problem for image, file in found.items() if file is not None and file.problem is not None},
        {image: file.note for image, file in found.items() if file is not None and file.note is not None},
    )


def inspect_images(images: Sequence[ImageSource]) -> dict[ImageSource, ImageFile | None]:
    """The content of each of `images`, None where there is no file; images known to the file index are not read.

    The index holds only valid images, since another version or plugin of Pillow may decode the others.
    """
    index = _index()
    found: dict[ImageSource, ImageFile | None] = {
        image: ImageFile(known["sha256"], (known["width"], known["height"]), note=known["note"])
        for image, known in index.find(images).items()
    }
    unknown = [image for image in dict.fromkeys(images) if image not in found]
    entries: dict[ImageSource, tuple[FileState, dict[str, str | int | None]]] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for image, (file, state) in zip(unknown, pool.map(_inspect, unknown), strict=True):
            found[image] = file
            if file is not None and file.size and state is not None:
                entry = {"sha256": file.sha256, "width": file.size[0], "height": file.size[1], "note": file.note}
                entries[image] = state, entry
    index.enter(entries)
    return found


def image_digests(images: Sequence[ImageSource]) -> dict[ImageSource, str]:
    """SHA-256 in hex of each image file's bytes, and of the frame and window if they are given. DataError if unreadable.

    Images known to the file index are not read.
    """
    digests: dict[ImageSource, str] = {image: known["sha256"] for image, known in _index().find(images).items()}
    unknown = [image for image in dict.fromkeys(images) if image not in digests]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return digests | dict(zip(unknown, pool.map(_read_digest, unknown), strict=True))


def image_kind(image: ImageSource) -> tuple[str, str]:
    """The format of a readable image's file, and the mode of its pixels by Pillow's or DICOM's names; from its head alone."""
    with _opened(_part(image)) as file:
        reader = _reader(file)
        if reader is read_dicom:
            return "DICOM", dicom_mode(file)
        if reader is read_nifti:
            return "NIfTI", "volume"
        with Image.open(file) as picture:
            return picture.format or "unknown", picture.mode


def _part(image: ImageSource) -> ImagePart:
    return image if isinstance(image, ImagePart) else ImagePart(image)


def _opened(part: ImagePart) -> BinaryIO:
    return part.path.open("rb") if part.member is None else io.BytesIO(member_bytes(part))


def _reader(file: BinaryIO) -> _Reader:
    """The reader for a file's format, by its content."""
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if not head:
        raise ImageError(what_it_is(head))
    if is_dicom(head):
        return read_dicom
    return read_nifti if is_gzip(head) or is_nifti(head) else read_picture


def _index() -> FileIndex:
    return FileIndex(f"image 2, Pillow {PIL.__version__}")


def _inspect(image: ImageSource) -> tuple[ImageFile | None, FileState | None]:
    """What an image contains, and the state of its file from before it was read."""
    part = _part(image)
    state = file_state(part.path)
    if state is None:
        return None, None
    if not part.path.is_file():
        return ImageFile(None, None, "it is a folder" if part.path.is_dir() else "it is no regular file"), None
    try:
        content = _content(part)
    except (OSError, DataError) as error:  # a disk or permission error, or a member that is not there
        return ImageFile(None, None, str(error)), None
    digest, file, window = _digest(content, part), io.BytesIO(content), part.window or "auto"
    try:
        reader = _reader(file)
        if reader is read_picture:
            size, note = inspect_picture(content, part.frame, window)
        else:
            decoded = reader(file, part.frame, window)
            size, note = decoded.image.size, decoded.note
    except ImageError as problem:
        return ImageFile(digest, None, str(problem)), state
    return ImageFile(digest, size, note=note), state


def _content(part: ImagePart) -> bytes:
    return part.path.read_bytes() if part.member is None else member_bytes(part)


def _digest(content: bytes, part: ImagePart) -> str:
    digest = hashlib.sha256(content)
    if part.frame is not None or part.window is not None:
        digest.update(f"\0frame {part.frame}, window {part.window}".encode())
    return digest.hexdigest()


def _read_digest(image: ImageSource) -> str:
    part = _part(image)
    try:
        return _digest(_content(part), part)
    except OSError as error:
        raise DataError(f"The image {image} cannot be read: {error.strerror or error}.") from None
