"""Says in words what a file is that cannot be read as an image."""

from __future__ import annotations

_BY_START = {
    b"%PDF": "it is a PDF: save its pages as PNG",
    b"PK\x03\x04": "it is a zip archive: unpack it",
    b"\x1f\x8b": "it is a gzip archive: unpack it",
    b"NRRD": "it is an NRRD volume: convert it to NIfTI",
    b"ObjectType": "it is a MetaImage: convert it to NIfTI",
    b"\x93NUMPY": "it is a NumPy array: save it as PNG or TIFF",
    b"version https://git-lfs": "it is a Git LFS pointer: fetch the image with `git lfs pull`",
}
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def what_it_is(head: bytes) -> str:
    """What a file that starts with `head` is and what to do, as part of a sentence about it."""
    if not head:
        return "it is empty"
    for start, answer in _BY_START.items():
        if head.startswith(start):
            return answer
    if head[4:8] == b"ftyp":
        return f"it is {'HEIC' if head[8:12] in _HEIC else 'a video'}: convert it to JPEG or PNG"
    lower = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if lower.startswith((b"<svg", b"<?xml")) and b"<svg" in lower:
        return "it is an SVG drawing: convert it to PNG"
    if lower.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, perhaps of a failed download"
    if _is_text(head):
        return "it is text, not an image"
    return "its format is unknown"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character that `head` cuts
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t" for character in text)
