"""The part of an image that a model sees, by its image processor's settings, and processors for images of another size."""

from __future__ import annotations

import json
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


def resize_to(processor: Any, size: int) -> None:
    """Make a transformers image processor resize, and crop if it does, to squares of `size` pixels; BackboneError otherwise.

    If it crops, it resizes in the same proportion to the crop as before.
    """
    settings = json.loads(processor.to_json_string())
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    shown = {name: pixels for name, pixels in (settings.get("size") or {}).items() if pixels is not None}
    sides: set[Any] = {(crop or shown).get("height"), (crop or shown).get("width")}
    if (
        not settings.get("do_resize", True)
        or not set(shown) <= {"height", "width", "shortest_edge"}
        or len(sides) > 1
        or None in sides
    ):
        raise BackboneError(f"{type(processor).__name__} does not make squares of images (size {shown}): leave image.size out.")
    scale = size / sides.pop()
    processor.size = {name: round(pixels * scale) for name, pixels in shown.items()}
    if crop:
        processor.crop_size = {"height": size, "width": size}


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
