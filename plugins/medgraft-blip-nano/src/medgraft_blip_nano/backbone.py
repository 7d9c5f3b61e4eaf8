"""The backbone class: BLIP, with weights that come along."""

from pathlib import Path

from medgraft.plugin_api import BlipBackbone


class BlipNano(BlipBackbone):
    """BLIP at 128 px, width 192, 6 vision and 4 text layers; the weights' README.md says how they were made."""

    default_source = str(Path(__file__).parent / "weights")
