"""The part of an image that a model sees, computed from its image processor's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medgraft.errors import BackboneError


def visible_rectangle(settings: Mapping[str, Any], width: int, height: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of a `width` x `height` image that remains after resizing and centre crop.

    `settings` are those of a transformers image processor: `do_resize` with `size`, `do_center_crop` with `crop_size`.
    """
    resized = _resized(settings, width, height)
    cropped = settings.get("crop_size") if settings.get("do_center_crop") else None
    shown = (cropped["width"], cropped["height"]) if cropped else resized
    left, top, right, bottom = (
        (whole + sign * part) / 2 * pixels / whole
        for sign in (-1, 1)
        for whole, part, pixels in zip(resized, shown, (width, height), strict=True)
    )
    return left, top, right, bottom


def _resized(settings: Mapping[str, Any], width: int, height: int) -> tuple[float, float]:
    size = settings.get("size") or {}
    if not settings.get("do_resize", True):
        return width, height
    if "shortest_edge" in size:
        scale = size["shortest_edge"] / min(width, height)
        return width * scale, height * scale
    if not {"width", "height"} <= set(size):
        raise BackboneError(f"Image size {dict(size)} is not supported here; the backbone has to override `visible_region`.")
    return size["width"], size["height"]
