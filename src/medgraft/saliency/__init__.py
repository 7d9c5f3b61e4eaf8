"""Attention maps of a caption's words, how well they point at findings, and whether they are faithful."""

from medgraft.saliency.explanation import Explanation
from medgraft.saliency.faithfulness import faithfulness
from medgraft.saliency.localization import localize
from medgraft.saliency.maps import METHODS, CaptionMaps, MapOptions, Method, WordMap, caption_maps, layer_count
from medgraft.saliency.overlay import COLOURS, COVER, heat, overlay
from medgraft.saliency.packed import packed, read_maps, write_maps

__all__ = [
    "COLOURS", "COVER", "METHODS", "CaptionMaps", "Explanation", "MapOptions", "Method", "WordMap", "caption_maps",
    "faithfulness", "heat", "layer_count", "localize", "overlay", "packed", "read_maps", "write_maps",
]  # fmt: skip
