"""The inspection of a data set as an HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from medgraft.report.pages import jpeg_uri, render_page
from medgraft.types import Example

if TYPE_CHECKING:
    from medgraft.inspection import InspectedData

_LONGEST_SIDE = 384  # px, of an image in the page
_ITEMS = 500  # of a problem; JSON has all
_CAPTION = 160  # characters below an image
_MODES = {
    "1": "black and white", "L": "8-bit grey", "LA": "grey with transparency", "P": "palette", "RGB": "colour",
    "RGBA": "colour with transparency", "CMYK": "colours for print", "I;16": "16-bit grey", "I": "32-bit grey",
    "F": "float grey",
}  # fmt: skip


def data_page(inspected: InspectedData) -> str:
    """The page: what a run does about each problem, splits, a contact sheet, and statistics of images and captions."""
    found = inspected.inspection
    images = found.images
    return render_page(
        "data",
        None,
        title=f"Data of {found.data}",
        found=found,
        most_items=_ITEMS,
        as_read=inspected.as_read,
        sheet=[
            {
                "id": image.example.id,
                "split": image.example.split,
                "about": f"{image.size[0]} x {image.size[1]}, {image.format}, {image.mode}{_first_of(image.example)}",
                "caption": _shortened(next(filter(None, image.example.captions), "")),
                "picture": _uri(image.picture),
            }
            for image in inspected.sheet
        ],
        pairs=[
            {
                "text": str(replace(pair.leak, examples=())),
                "images": [
                    {"id": key, "split": split, "picture": _uri(picture)}
                    for key, split, picture in zip(pair.ids, (pair.leak.split, pair.leak.other), pair.pictures, strict=True)
                ],
            }
            for pair in inspected.pairs
        ],
        sides=_bars(images.longest_side) if images else [],
        modes=_bars({f"{m} ({_MODES[m]})" if m in _MODES else m: n for m, n in images.modes.items()}) if images else [],
        formats=_bars(images.formats) if images else [],
    )


def _bars(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows of a bar chart: label, count, and share of all."""
    total = sum(counts.values()) or 1
    return [{"label": label, "count": count, "share": count / total} for label, count in counts.items()]


def _uri(picture: Image.Image) -> str:
    return jpeg_uri(picture, longest=_LONGEST_SIDE, quality=80)


def _first_of(example: Example) -> str:
    return f", the first of {len(example.images)}" if example.more_images else ""


def _shortened(text: str) -> str:
    return text if len(text) <= _CAPTION else text[:_CAPTION].rstrip() + "…"
