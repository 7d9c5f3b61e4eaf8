"""Explanations as an HTML page: images, their captions and the attention map of each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medgraft.report.pages import jpeg_uri, render_page
from medgraft.saliency import COLOURS, Explanation

_LONGEST_SIDE = 2048  # px, of an image in the page


def explanation_page(images: Mapping[str, Sequence[tuple[str, Explanation]]], model: str) -> str:
    """The page. Each image, by name, has (label, explanation) pairs of one caption to choose from."""
    data = {
        "colours": COLOURS.tolist(),
        "images": [
            {
                "name": name,
                "image": jpeg_uri(image, longest=_LONGEST_SIDE, quality=88),
                "choices": [{"name": choice, **explanation.packed()} for choice, explanation in choices],
            }
            for name, choices in images.items()
            for image in (choices[0][1].image,)
        ],
    }
    return render_page("explanation", data, title="Attention of the model", model=model)
