"""Attention maps of a caption's words, how well they point at findings, and whether they are faithful."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.lazy import lazily
from medgraft.saliency.faithfulness import faithfulness
from medgraft.saliency.overlay import COLOURS, COVER, heat, overlay
from medgraft.saliency.packed import packed, read_maps, write_maps

if TYPE_CHECKING:
    from medgraft.saliency.explanation import Explanation
    from medgraft.saliency.localization import can_be_localized, localize
    from medgraft.saliency.maps import METHODS, CaptionMaps, MapOptions, Method, WordMap, caption_maps, layer_count
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "COLOURS", "COVER", "CaptionMaps", "Explanation", "METHODS", "MapOptions", "Method", "WordMap", "can_be_localized",
    "caption_maps", "faithfulness", "heat", "layer_count", "localize", "overlay", "packed", "read_maps", "write_maps",
]  # fmt: skip
