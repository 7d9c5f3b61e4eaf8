"""What decoding an image gives: an RGB image, or the reason why there is none."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

_SQUARE = 1.02  # pixels up to this ratio of their sides are shown as they are
_MOST_STRETCHED = 20  # a larger ratio is an error in a header, not a scanner's


class ImageError(Exception):
    """Why an image cannot be shown: part of a sentence about it, without a full stop."""


@dataclass(frozen=True)
class DecodedImage:
    """An image as RGB. `note` tells of a choice that the file left open, in words that are the same for all such images."""

    image: Image.Image
    note: str | None = None


@contextmanager
def decoding(kind: str) -> Iterator[None]:
    """Errors raised inside the block, which are of any kind where a file is damaged, become an ImageError that names `kind`."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        reason = textwrap.shorten(str(error), 200).rstrip(".") or type(error).__name__
        raise ImageError(f"its {kind} is damaged or not supported: {reason}") from None


def refuse_too_large(width: int, height: int) -> None:
    """ImageError above the number of pixels that Pillow refuses to decode."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise ImageError(f"it would have {width * height} pixels, and Pillow's limit is {2 * limit}")


def with_square_pixels(image: Image.Image, height: float, width: float) -> Image.Image:
    """The image, enlarged along one side unless its pixels, of this height and width in any unit, are square."""
    if not (0 < height < float("inf") and 0 < width < float("inf")):
        return image
    ratio = height / width
    if max(ratio, 1 / ratio) < _SQUARE or max(ratio, 1 / ratio) > _MOST_STRETCHED:
        return image
    wide, high = image.size
    size = (wide, round(high * ratio)) if ratio > 1 else (round(wide / ratio), high)
    refuse_too_large(*size)
    return image.resize(size, Image.Resampling.BILINEAR)
