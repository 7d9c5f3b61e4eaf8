"""What is stored in an image's file."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from medgraft.data.members import member_bytes
from medgraft.types import ImageSource


def image_kind(image: ImageSource) -> tuple[str, str]:
    """The file's format and the mode of its pixels, by Pillow's names; from its head alone."""
    with Image.open(image if isinstance(image, Path) else io.BytesIO(member_bytes(image))) as file:
        return file.format or "unknown", file.mode
