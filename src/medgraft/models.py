"""Load a base model, quantised if the strategy requests it."""

from __future__ import annotations

from medgraft.backbones import Backbone, get_backbone
from medgraft.backbones.image_size import config_for_size
from medgraft.backbones.loading import read_config
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, check_quantized, keep_as_loaded, quantization_config


def load_model(name: str, strategy: Strategy, *, plugins: PluginManager, image_size: int | None = None) -> Backbone:
    """Load the backbone `NAME[:SOURCE]` with the quantisation of `strategy`; the strategy is not applied yet.

    It takes images of `image_size` pixels a side, None: of the checkpoint's own size.
    """
    backbone_class, source = get_backbone(name, plugins=plugins)
    if image_size is not None:
        config_for_size(backbone_class, read_config(source, backbone_class.model_types), image_size, plugins=plugins)
    config = quantization_config(strategy, backbone_class.anatomy, backbone_class.never_quantized)
    backbone = backbone_class.load(source, quantization=config)
    check_quantized(backbone.model, backbone.anatomy, strategy, backbone.never_quantized)
    keep_as_loaded(backbone.model)
    if image_size is not None:
        backbone.set_image_size(image_size)
    return backbone
