"""Load a base model, quantised if the strategy requests it."""

from __future__ import annotations

from medgraft.backbones import Backbone, get_backbone
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, check_quantized, keep_as_loaded, quantization_config


def load_model(name: str, strategy: Strategy, *, plugins: PluginManager) -> Backbone:
    """Load the backbone `NAME[:SOURCE]` with the quantisation of `strategy`; the strategy is not applied yet."""
    backbone_class, source = get_backbone(name, plugins=plugins)
    config = quantization_config(strategy, backbone_class.anatomy, backbone_class.never_quantized)
    backbone = backbone_class.load(source, quantization=config)
    check_quantized(backbone.model, backbone.anatomy, strategy, backbone.never_quantized)
    keep_as_loaded(backbone.model)
    return backbone
