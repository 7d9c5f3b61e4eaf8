"""What a model looked at while it said each word: attention maps, how well they point, and whether they are to be believed."""

from medgraft.saliency.explanation import Explanation, explain_images
from medgraft.saliency.maps import METHODS, CaptionMaps, Method, WordMap, caption_maps, layer_count
from medgraft.saliency.overlay import COLOURS, heat, overlay
from medgraft.saliency.packed import packed, read_maps, write_maps
from medgraft.saliency.study import SaliencyResult, maps_of, score_saliency

__all__ = [
    "COLOURS", "METHODS", "CaptionMaps", "Explanation", "Method", "SaliencyResult", "WordMap", "caption_maps", "explain_images",
    "heat", "layer_count", "maps_of", "overlay", "packed", "read_maps", "score_saliency", "write_maps",
]  # fmt: skip
