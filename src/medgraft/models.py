"""Load a base model, quantised if the strategy requests it or the base is stored so."""

from __future__ import annotations

from medgraft.backbones import Backbone, RemoteCaptioner, get_backbone, get_captioner
from medgraft.backbones.half_weights import Held
from medgraft.backbones.image_size import config_for_size
from medgraft.backbones.published import planning_config
from medgraft.plugin import PluginManager
from medgraft.strategies import (
    Strategy,
    adopt_stored,
    as_stored,
    check_quantized,
    keep_as_loaded,
    needs_fp32,
    quantization_config,
    stored_quantization,
)


def settled(name: str, strategy: Strategy, *, plugins: PluginManager) -> Strategy:
    """`strategy` as it is applied to `NAME[:SOURCE]`: in the quantisation in which its weights are stored, if they are.

    StrategyError if it asks for another quantisation.
    """
    captioner, source = get_captioner(name, plugins=plugins)
    if issubclass(captioner, RemoteCaptioner):
        return strategy
    return as_stored(strategy, source, planning_config(source, captioner.model_types))


def load_model(
    name: str, strategy: Strategy, *, plugins: PluginManager, held: Held = Held(), image_size: int | None = None
) -> Backbone:
    """Load the backbone `NAME[:SOURCE]` with the quantisation of `strategy`; the strategy is not applied yet.

    Weights that `strategy` does not need in fp32 are loaded as `held` says. Images have `image_size` pixels a side, None: as
    many as the checkpoint says.
    """
    backbone_class, source = get_backbone(name, plugins=plugins)
    config = planning_config(source, backbone_class.model_types)
    if image_size is not None:
        config_for_size(backbone_class, config, image_size, plugins=plugins)
    strategy = as_stored(strategy, source, config)
    if stored_quantization(config)[0] != "none":
        backbone = backbone_class.load(source, held=Held(placement=held.placement))
        adopt_stored(backbone.model, strategy, source)
    else:
        wanted = quantization_config(strategy, backbone_class.anatomy, backbone_class.never_quantized)
        kept = held.fp32 or needs_fp32(backbone_class.anatomy, strategy)

        def fp32(name: str) -> bool:  # embeddings of positions are interpolated for another size
            return kept(name) or (image_size is not None and "embed" in name)

        backbone = backbone_class.load(source, quantization=wanted, held=held._replace(fp32=fp32))
        check_quantized(backbone.model, backbone.anatomy, strategy, backbone.never_quantized)
    keep_as_loaded(backbone.model)
    backbone.placement = held.placement
    if image_size is not None:
        backbone.set_image_size(image_size)
    return backbone
