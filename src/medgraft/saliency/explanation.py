"""One image, its caption, and where the model looked while it said each word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from medgraft.metrics.base import Array
from medgraft.saliency.geometry import Rectangle
from medgraft.saliency.maps import CaptionMaps
from medgraft.saliency.overlay import heat, overlay
from medgraft.saliency.packed import packed


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
