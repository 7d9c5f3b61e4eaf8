"""Renders self-contained HTML pages: no network, no server, no other file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from PIL import Image


def render_page(name: str, data: dict[str, Any] | None, *, scripts: Sequence[str] = (), **values: Any) -> str:
    """Render `page/NAME.html` with `values` and the shared style; with `data` for `page/NAME.js` and the `scripts` after it."""
    folder = files("medgraft.report") / "page"

    def read(file: str) -> str:
        return (folder / file).read_text(encoding="utf-8")

    if data is not None:
        # escaped, so that data cannot end or open a script
        values["data"] = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        values["script"] = "".join(read(f"{script}.js") for script in ("maps", "zoom", name, *scripts))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medgraft.report", "page"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    styles = "".join(map(read, ("page.css", "table.css", "images.css")))
    return environment.get_template(f"{name}.html").render(**values, css=styles)


def jpeg_uri(image: Image.Image, *, longest: int, quality: int) -> str:
    """The image as a data URI, scaled down if a side is longer than `longest` pixels."""
    scale = min(1.0, longest / max(image.size))
    size = max(1, round(image.size[0] * scale)), max(1, round(image.size[1] * scale))
    buffer = io.BytesIO()
    image.convert("RGB").resize(size).save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
