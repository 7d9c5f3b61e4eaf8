"""Images that Pillow reads, such as JPEG, PNG and TIFF, as people see them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from medgraft.data.decoded import DecodedImage, ImageError, decoding
from medgraft.data.file_kinds import what_it_is
from medgraft.data.grey_levels import windowed

NO_CONTRAST = "of one colour throughout"

_FIRST_FRAME = "of several frames or pages the first is shown"
_OVER_BLACK = "transparent parts are shown as black"
_HOLD_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # keys of an image's `info`
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_UPPER_BITS_OF_16 = re.compile(r";16[BLN]")  # Pillow's name for a layout of colours of which it keeps the upper 8 bits
_COLORS = ("RGB", "RGBA", "LA")
_DARK = 32  # 12 bits in 16 stay below it


def read_picture(file: BinaryIO, frame: int | None, window: str) -> DecodedImage:
    """The first frame or page or the one asked for. `window` is for more than 8 bits. ImageError if it cannot be shown."""
    with _opened(file) as image:
        note = _load(image, frame)
        hidden = _OVER_BLACK if not _is_deep(image) and _is_clear_in_parts(image) else None
        return DecodedImage(as_rgb(image, window), note or hidden)


def as_rgb(image: Image.Image, window: str = "auto") -> Image.Image:
    """A decoded image as RGB: turned by EXIF, transparency over black, more than 8 bits in `window`; without metadata.

    ImageError if it has no contrast in the window.
    """
    turn = _TURNS.get(_orientation(image))
    if _is_deep(image):
        rgb = Image.fromarray(windowed(np.asarray(image), window)).convert("RGB")
    else:
        rgb = _over_black(image) if _is_clear_in_parts(image) else image.convert("RGB")
    rgb.info = {}  # comments in a file may name a person
    return rgb if turn is None else rgb.transpose(turn)


def inspect_picture(content: bytes, frame: int | None, window: str) -> tuple[tuple[int, int], str | None]:
    """Width, height and the note of what `read_picture` gives, mostly in less time. ImageError where that raises it."""
    with _opened(io.BytesIO(content)) as image:
        whole = _is_deep(image) or image.has_transparency_data
        if not whole:
            size = image.size
            image.draft("L", (64, 64))  # decodes a whole JPEG at an eighth of its size
            note = _load(image, frame)
            size = size[::-1] if _orientation(image) >= 5 else size
            whole = _is_flat(image.resize((16, 16), Image.Resampling.NEAREST))
    if whole:
        decoded = read_picture(io.BytesIO(content), frame, window)
        size, note = decoded.image.size, NO_CONTRAST if _is_flat(decoded.image) else decoded.note
    return size, note


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    """The image in a file; all that Pillow raises inside the block is an ImageError."""
    with decoding("content"):
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            file.seek(0)
            raise ImageError(what_it_is(file.read(1024))) from None
        with image:
            yield image


def _load(image: Image.Image, frame: int | None) -> str | None:
    """Decode a frame; returns a note if there are others."""
    if frame is not None:
        try:
            image.seek(frame)
        except EOFError:
            raise ImageError(f"it has no frame {frame} (the first is 0)") from None
    several = frame is None and getattr(image, "is_animated", False)
    in_part = image.mode in _COLORS and any(_UPPER_BITS_OF_16.search(str(tile[3])) for tile in getattr(image, "tile", ()))
    image.load()
    if in_part and np.asarray(image.convert("RGB")).max() < _DARK:
        raise ImageError("its colours have 16 bits but use the lower ones only: save it with 8 bits or as 16-bit greyscale")
    return _FIRST_FRAME if several else None


def _is_deep(image: Image.Image) -> bool:
    """Whether it is greyscale of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _orientation(image: Image.Image) -> int:
    """How to turn a decoded image, by EXIF; Pillow has turned TIFF already."""
    if not _HOLD_EXIF & image.info.keys():
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block does not spoil the image
        return 1


def _is_clear_in_parts(image: Image.Image) -> bool:
    """Whether it uses transparency; a file that is clear throughout does not."""
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema() not in ((255, 255), (0, 0))


def _over_black(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA")).convert("RGB")


def _is_flat(image: Image.Image) -> bool:
    """Whether all pixels are the same."""
    return all(channel.getextrema()[0] == channel.getextrema()[1] for channel in image.split())
