"""Maps packed for HTML pages: each word's patches as bytes, which the page draws."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medgraft.disk import write_whole
from medgraft.metrics.measured import Array
from medgraft.saliency.geometry import Rectangle
from medgraft.saliency.maps import CaptionMaps

MAPS_FILE = "maps.json"


def packed(maps: CaptionMaps, view: Rectangle, size: tuple[int, int]) -> dict[str, Any]:
    """`words` as [start, end, map, probability]; `view` in shares of the image.

    Maps are base64 of bytes row by row, 255 at the highest. Files of earlier versions have no probabilities.
    """
    shape = maps.words[0].grid.shape if maps.words else (0, 0)
    text = maps.caption
    return {
        "caption": maps.caption,
        "label": maps.label,
        "view": [round(edge / whole, 5) for edge, whole in zip(view, (*size, *size), strict=True)],
        "shape": list(shape),
        "words": [
            [_utf16(text[: w.start]), _utf16(text[: w.end]), _bytes(w.grid), round(w.probability, 4)] for w in maps.words
        ],
    }


def write_maps(maps: Mapping[str, dict[str, Any]], folder: Path) -> None:
    """Write `maps.json` into `folder`, packed maps by image id."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / MAPS_FILE, json.dumps(maps, ensure_ascii=False))


def read_maps(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of `maps.json` in `folder`; empty if there is no such file."""
    try:
        maps: dict[str, dict[str, Any]] = json.loads((folder / MAPS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return maps


def _utf16(text: str) -> int:
    """Length of `text` in JavaScript, in UTF-16 code units."""
    return len(text.encode("utf-16-le")) // 2


def _bytes(grid: Array) -> str:
    highest = float(grid.max())
    values = np.round(grid / highest * 255) if highest > 0 else np.zeros(grid.shape)
    return base64.b64encode(values.clip(0, 255).astype(np.uint8).tobytes()).decode()
