"""What is stored in an image's file."""

from __future__ import annotations

import io

from PIL import Image

from medgraft.data.dicom import dicom_mode, is_dicom
from medgraft.data.members import member_bytes
from medgraft.data.volumes import is_gzip, is_nifti
from medgraft.types import ImagePart, ImageSource

_HEAD_BYTES = 512


def image_kind(image: ImageSource) -> tuple[str, str]:
    """The format of a readable image's file, and the mode of its pixels by Pillow's or DICOM's names; from its head alone."""
    part = image if isinstance(image, ImagePart) else ImagePart(image)
    with part.path.open("rb") if part.member is None else io.BytesIO(member_bytes(part)) as file:
        head = file.read(_HEAD_BYTES)
        file.seek(0)
        if is_dicom(head):
            return "DICOM", dicom_mode(file)
        if is_gzip(head) or is_nifti(head):
            return "NIfTI", "volume"
        with Image.open(file) as picture:
            return picture.format or "unknown", picture.mode
