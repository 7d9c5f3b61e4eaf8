"""One image, its caption, and the attention map of each word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from medgraft.metrics.measured import Array
from medgraft.saliency.geometry import Rectangle
from medgraft.saliency.maps import CaptionMaps
from medgraft.saliency.overlay import heat, overlay
from medgraft.saliency.packed import packed


@dataclass(frozen=True)
class Explanation:
    """`maps` of a caption's words over `image`; `view` is the rectangle of the image, in pixels, that the model sees."""

    image: Image.Image
    maps: CaptionMaps
    view: Rectangle

    @property
    def caption(self) -> str:
        """The explained caption, generated or given."""
        return self.maps.caption

    def heat(self, word: int) -> Array:
        """The map of word number `word` as values from 0 to 1 at the image's own resolution, [height, width]."""
        return heat(self.maps.words[word].grid, self.view, self.image.size)

    def overlay(self, word: int) -> Image.Image:
        """The image with the map of word number `word` in colours over it."""
        return overlay(self.image, self.maps.words[word].grid, self.view)

    def packed(self) -> dict[str, Any]:
        """The form that pages take; see medgraft.saliency.packed."""
        return packed(self.maps, self.view, self.image.size)
