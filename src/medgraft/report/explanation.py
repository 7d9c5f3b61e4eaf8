"""Explanations as an HTML page: images, their captions and the attention map of each word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from medgraft.report.pages import jpeg_uri, render_page
from medgraft.saliency import COLOURS, COVER

if TYPE_CHECKING:
    from medgraft.saliency import Explanation

_LONGEST_SIDE = 2048  # px, of an image in the page


def explanation_page(images: Mapping[str, Sequence[tuple[str, Explanation]]], model: str) -> str:
    """The page. Each image, by its file, has (label, explanation) pairs of one caption to choose from."""
    names = file_names(images)
    shown = [
        {
            "name": names[file],
            "uri": jpeg_uri(first.image, longest=_LONGEST_SIDE, quality=88),
            "ratio": first.image.size[0] / first.image.size[1],
            "caption": first.caption,
            "label": first.maps.label,
            "words": first.maps.words,
        }
        for file, ((_, first), *_) in images.items()
    ]
    data = {
        "colours": COLOURS.tolist(),
        "cover": COVER,
        "images": [
            {"name": names[file], "choices": [{"name": choice, **explanation.packed()} for choice, explanation in choices]}
            for file, choices in images.items()
        ],
    }
    return render_page("explanation", data, title="Attention of the model", model=model, images=shown)


def file_names(files: Iterable[str]) -> dict[str, str]:
    """The name of each file without its folders, with as many of them as tell it from the others' names."""
    parts = {file: PurePath(file).parts for file in files}
    names = {file: of[-1:] for file, of in parts.items()}
    while repeated := {name for name, count in Counter(names.values()).items() if count > 1}:
        longer = {file: parts[file][-len(name) - 1 :] if name in repeated else name for file, name in names.items()}
        if longer == names:
            break
        names = longer
    return {file: str(PurePath(*name)) if name else file for file, name in names.items()}
