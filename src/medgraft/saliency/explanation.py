"""One image, its caption, and where the model looked while it said each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medgraft.backbones import Backbone
from medgraft.data import open_image
from medgraft.metrics.base import Array
from medgraft.saliency.geometry import Rectangle
from medgraft.saliency.maps import CaptionMaps, Method
from medgraft.saliency.overlay import heat, overlay
from medgraft.saliency.packed import packed
from medgraft.saliency.study import maps_of


@dataclass(frozen=True)
class Explanation:
    """`maps` of the words of a caption over `image`; `view` is the rectangle of the image, in pixels, that the model saw."""

    image: Image.Image
    maps: CaptionMaps
    view: Rectangle

    @property
    def caption(self) -> str:
        """What was said of the image, or given."""
        return self.maps.caption

    def heat(self, word: int) -> Array:
        """The map of a word, by its number, as values from 0 to 1 at the image's own resolution, [height, width]."""
        return heat(self.maps.words[word].grid, self.view, self.image.size)

    def overlay(self, word: int) -> Image.Image:
        """The image with the map of a word, by its number, in colours over it."""
        return overlay(self.image, self.maps.words[word].grid, self.view)

    def packed(self) -> dict[str, Any]:
        """As pages take it; see medgraft.saliency.packed."""
        return packed(self.maps, self.view, self.image.size)


def explain_images(
    backbone: Backbone,
    paths: Sequence[Path],
    captions: Sequence[str],
    *,
    prompt: str,
    bf16: bool,
    method: Method = "attention",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[Explanation]:
    """An explanation of each image's caption, as the model is told to say it."""
    found = maps_of(backbone, paths, captions, prompt=prompt, bf16=bf16, method=method, layers=layers, heads=heads)
    images = [open_image(path) for path in paths]
    return [Explanation(image, maps, backbone.visible_region(*image.size)) for image, maps in zip(images, found, strict=True)]
