"""Slices of NIfTI volumes, by nibabel, an optional dependency."""

from __future__ import annotations

import gzip
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from medgraft.data.decoded import DecodedImage, ImageError, decoding, refuse_too_large, with_square_pixels
from medgraft.data.file_kinds import what_it_is
from medgraft.data.grey_levels import Levels, Values, grey_levels, has_contrast, windowed

_GZIP = b"\x1f\x8b"
_HEAD_BYTES = 352
_MIDDLE_SLICE = "of a volume the middle axial slice is shown"
_FIRST_VOLUME = "of several volumes the first is shown, and of that the middle axial slice unless a frame is given"


def is_gzip(head: bytes) -> bool:
    """Whether a file that starts with `head` is compressed by gzip."""
    return head.startswith(_GZIP)


def is_nifti(head: bytes) -> bool:
    """Whether a file that starts with `head` is NIfTI."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read_nifti(file: BinaryIO, frame: int | None, window: str) -> DecodedImage:
    """The axial slice `frame`, counted from the feet, as a radiologist sees it: front up, the patient's right at the left.

    The axes are those closest to the patient's. Of several volumes it is the first. ImageError if it cannot be shown.
    """
    try:
        import nibabel
    except ImportError:
        raise ImageError("it is NIfTI, which needs: pip install 'medgraft[nifti]'") from None
    with decoding("NIfTI"):
        compressed = is_gzip(file.read(2))
        file.seek(0)
        content = gzip.GzipFile(fileobj=file) if compressed else file
        head = content.read(_HEAD_BYTES)
        if not is_nifti(head):
            raise ImageError(what_it_is(_GZIP))
        if b"ni1" in head[344:348] or b"ni2" in head[4:8]:
            raise ImageError("it is half of a NIfTI pair (.hdr and .img): convert it to one .nii file")
        content.seek(0)
        kind = nibabel.Nifti2Image if head[4:6] == b"n+" else nibabel.Nifti1Image
        holder = nibabel.FileHolder(fileobj=content)
        volume = kind.from_file_map({"header": holder, "image": holder}, mmap=False)
        return _slice(volume, frame, window)


def _slice(volume: Any, frame: int | None, window: str) -> DecodedImage:
    import nibabel

    axes = nibabel.io_orientation(volume.affine)  # for each stored axis the patient's axis, and -1 if it runs backwards
    shape = (*volume.shape, 1, 1)[: max(3, len(volume.shape))]
    lengths, sides = [0, 0, 0], [1.0, 1.0, 1.0]  # along the patient's axes: to the left, to the front and to the head
    for (axis, _), length, side in zip(axes, shape, (*volume.header.get_zooms(), 1.0, 1.0), strict=False):
        if not np.isfinite(axis):
            raise ImageError("its NIfTI header gives no axis of the patient")
        lengths[int(axis)], sides[int(axis)] = length, float(side)
    across = lengths.index(1) if 1 in lengths else 2  # a single slice may be coronal or sagittal
    first, second = (axis for axis in range(3) if axis != across)
    if min(lengths[first], lengths[second]) < 2:
        raise ImageError(f"its NIfTI holds no images: its shape is {' x '.join(map(str, volume.shape))}")
    refuse_too_large(lengths[first], lengths[second])
    slices = lengths[across]
    wanted = slices // 2 if frame is None else frame
    if wanted >= slices:
        raise ImageError(f"it has {slices} slices, and slice {wanted} was asked for (the first is 0)")
    stored = int(np.flatnonzero(axes[:, 0] == across)[0])
    place = wanted if axes[stored, 1] > 0 else slices - 1 - wanted
    index = [slice(place, place + 1) if axis == stored else slice(None) for axis in range(3)] + [0] * (len(shape) - 3)
    slab = np.asanyarray(volume.dataobj[tuple(index[: len(volume.shape)])]).reshape(
        [shape[i] if i != stored else 1 for i in range(3)]
    )
    values = np.take(nibabel.apply_orientation(slab, axes), 0, axis=across)[::-1, ::-1].T
    several = len(shape) > 3 and max(shape[3:]) > 1
    note = _FIRST_VOLUME if several else _MIDDLE_SLICE if frame is None and slices > 1 else None
    image = Image.fromarray(_levels(values, volume.header, window)).convert("RGB")
    return DecodedImage(with_square_pixels(image, sides[second], sides[first]), note)


def _levels(values: Values, header: Any, window: str) -> Levels:
    """Levels of a slice [H, W], or its colours [H, W, 3]."""
    if values.dtype.names:
        return np.stack([values[name] for name in "RGB"], axis=-1)
    if np.iscomplexobj(values):
        raise ImageError("its NIfTI values are complex numbers")
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if window != "file" or not low < high:
        return windowed(values, window)
    levels = grey_levels(values, (low, high))
    if not has_contrast(levels):
        raise ImageError("it has no contrast in its own window")
    return levels
