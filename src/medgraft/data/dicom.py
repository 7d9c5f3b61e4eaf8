"""Images of DICOM files as a viewer shows them, by pydicom, an optional dependency.

Only the fields that describe pixels are read, so none that identifies a person can reach an image or a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from medgraft.data.decoded import DecodedImage, ImageError, decoding, refuse_too_large, with_square_pixels
from medgraft.data.grey_levels import CT_WINDOWS, Levels, Values, grey_levels, has_contrast, window_limits, windowed

_PALETTES = [f"{color}PaletteColorLookupTable" for color in ("Red", "Green", "Blue")]
_PIXELS = ("FloatPixelData", "DoubleFloatPixelData", "PixelData")
_FIELDS = [
    "Modality", "ImageType", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelSpacing", "ImagerPixelSpacing",
    "PixelAspectRatio", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "ModalityLUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "PaletteColorLookupTableUID",
    *(f"{palette}{part}" for palette in _PALETTES for part in ("Descriptor", "Data")),
    *(f"Segmented{palette}Data" for palette in _PALETTES),
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    *_PIXELS,
]  # fmt: skip
_GROUPS = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence")  # of enhanced DICOM
_MIDDLE_FRAME = "of several frames the middle one is shown"


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with `head` is DICOM: after a preamble, or from its first field, of group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    little, big = head[:2] in (b"\x02\0", b"\x08\0"), head[:2] == b"\0\x08"
    names_its_type = head[4:6].isalpha() and head[4:6].isupper()
    is_short = 0 < int.from_bytes(head[4:8], "little") < 1000
    return (little and (names_its_type or is_short)) or (big and names_its_type)


def read_dicom(file: BinaryIO, frame: int | None, window: str) -> DecodedImage:
    """The image of a DICOM file, or its `frame`, in `window`. ImageError if it cannot be shown."""
    try:
        import pydicom
    except ImportError:
        raise ImageError("it is DICOM, which needs: pip install 'medgraft[dicom]'") from None
    with decoding("DICOM"):
        header = pydicom.dcmread(file, force=True, specific_tags=_FIELDS)
        if "Rows" not in header or not any(name in header for name in _PIXELS):
            raise ImageError(f"it is DICOM without an image, of modality {header.get('Modality') or 'unknown'}")
        return _shown(header, frame, window)


def dicom_mode(file: BinaryIO) -> str:
    """The photometric interpretation and the bits of a DICOM file's pixels."""
    import pydicom

    fields = ["PhotometricInterpretation", "BitsStored"]
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=fields)
    return f"{header.get('PhotometricInterpretation')} {header.get('BitsStored')}-bit"


def _shown(header: Any, frame: int | None, window: str) -> DecodedImage:
    from pydicom import pixels, uid

    refuse_too_large(int(header.Columns), int(header.Rows))
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little_endian = header.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little_endian else uid.ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    frames = int(header.get("NumberOfFrames") or 1)
    index = frames // 2 if frame is None else frame
    if index >= frames:
        raise ImageError(f"it has {frames} frames, and frame {index} was asked for (the first is 0)")
    _flatten_groups(header, index)
    stored = _decompressed(header, index)
    kind = str(header.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        levels = _color_levels(pixels.apply_color_lut(stored, header))
    elif stored.ndim == 3:
        levels = _color_levels(stored, int(header.BitsStored))
    elif kind in ("MONOCHROME1", "MONOCHROME2"):
        padding = _padding(stored, header)
        levels = _grey(pixels.apply_modality_lut(stored, header), padding, header, window)
        levels = 255 - levels if kind == "MONOCHROME1" else levels
        levels[padding] = 0
    else:
        raise ImageError(f"its DICOM colours {kind!r} are not supported")
    image = with_square_pixels(Image.fromarray(levels).convert("RGB"), *_pixel_sides(header))
    return DecodedImage(image, _MIDDLE_FRAME if frames > 1 and frame is None else None)


def _decompressed(header: Any, frame: int) -> Values:
    """The stored values of a frame: [H, W], or [H, W, 3] as RGB."""
    from pydicom import pixels

    try:
        values: Values = pixels.pixel_array(header, index=frame)
    except RuntimeError as error:
        needs = f"it is DICOM compressed as {header.file_meta.TransferSyntaxUID.name}, which needs: pip install "
        if "missing dependencies" in str(error):
            raise ImageError(needs + "'medgraft[dicom]'") from None
        if "12-bit precision" in str(error) and "pylibjpeg" not in str(error):
            raise ImageError(needs + "pylibjpeg-libjpeg (under the GPL)") from None
        raise
    return values


def _flatten_groups(header: Any, frame: int) -> None:
    """Put what enhanced DICOM says of a frame where other DICOM has it."""
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    of_frame = list(header.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    for groups in shared + of_frame:
        for name in _GROUPS:
            for item in list(groups.get(name) or [])[:1]:
                header.update(item)


def _grey(values: Values, padding: Values, header: Any, window: str) -> Levels:
    """Levels [H, W] of values after the modality's table; those in `padding` do not count."""
    if window in CT_WINDOWS and header.get("Modality") != "CT":
        raise ImageError(f"window {window!r} is for CT, and its modality is {header.get('Modality') or 'unknown'}")
    visible = np.where(padding, np.nan, values) if padding.any() else values
    if window not in ("auto", "file"):
        return windowed(visible, window)
    own = _own_levels(values, header)
    if window == "file" and own is None:
        raise ImageError("it has no window of its own")
    for levels in (own,) if window == "file" else (own, *_default_levels(visible, header)):
        if levels is not None and has_contrast(levels):
            return levels
    raise ImageError("it has no contrast" if window == "auto" else "it has no contrast in its own window")


def _own_levels(values: Values, header: Any) -> Levels | None:
    """What the file's first VOI table or else its first window shows, by DICOM PS3.3 C.11.2; None if it has neither."""
    if tables := header.get("VOILUTSequence"):
        count, first, _ = tables[0].LUTDescriptor
        entries = _table_entries(tables[0].LUTData, count or 65536, header)
        index = (np.nan_to_num(values).astype(np.float64) - first).clip(0, len(entries) - 1).astype(int)
        return grey_levels(entries[index], (0, 2 ** int(entries.max()).bit_length() - 1))
    centers, widths = (np.atleast_1d(header.get(name) or []) for name in ("WindowCenter", "WindowWidth"))
    if not (centers.size and widths.size and float(widths[0]) > 0):
        return None
    center, width = float(centers[0]), float(widths[0])
    function = header.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        return grey_levels(1 / (1 + np.exp(-4 * (values - center) / width)), (0, 1))
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 0)
    return grey_levels(values, (center - width / 2, center + width / 2))


def _default_levels(values: Values, header: Any) -> Iterator[Levels]:
    """Levels of an image whose file has no window: what is the use for its modality, then by percentiles."""
    rescaled = any(name in header for name in ("RescaleIntercept", "ModalityLUTSequence"))
    in_hu = rescaled and (header.get("RescaleType") or "HU") == "HU" and "LOCALIZER" not in (header.get("ImageType") or ())
    if header.get("Modality") == "CT" and in_hu:
        yield grey_levels(values, window_limits(values, "soft-tissue"))
    bits = int(header.get("BitsStored") or 16)
    if bits <= 8 and not rescaled and not header.get("PixelRepresentation"):
        yield grey_levels(values, (0, 2**bits - 1))
    yield grey_levels(values, window_limits(values, "percentile"))


def _table_entries(data: Any, count: int, header: Any) -> Values:
    """The entries of a lookup table, which pydicom gives as numbers or as bytes."""
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data, dtype=np.int64))
    order = "<" if header.original_encoding[1] else ">"
    return np.frombuffer(data, f"{order}u2" if len(data) >= 2 * count else "u1")[:count].astype(np.int64)


def _color_levels(values: Values, bits: int = 16) -> Levels:
    """Levels of colours with `bits` bits, or with 8 if a table of 16 has no larger entry."""
    if values.dtype.itemsize == 1 or values.max() < 256:
        return values.astype(np.uint8)
    return (values >> (bits - 8)).astype(np.uint8)


def _padding(stored: Values, header: Any) -> Values:
    """Where an image was filled up to a rectangle."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    low, high = sorted((int(value), int(header.get("PixelPaddingRangeLimit", value))))
    found: Values = (stored >= low) & (stored <= high)
    return found


def _pixel_sides(header: Any) -> tuple[float, float]:
    """Height and width of a pixel in a common unit."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        sides = header.get(name)
        if sides is not None and len(sides) == 2:
            return float(sides[0]), float(sides[1])
    return 1.0, 1.0
