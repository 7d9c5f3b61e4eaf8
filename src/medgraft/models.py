"""Load a base model, quantised if the strategy requests it, and frozen weights in what they are computed in."""

from __future__ import annotations

from collections.abc import Callable

import torch

from medgraft.backbones import Backbone, get_backbone
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, check_quantized, keep_as_loaded, needs_fp32, quantization_config


def load_model(
    name: str,
    strategy: Strategy,
    *,
    plugins: PluginManager,
    dtype: torch.dtype = torch.float32,
    fp32: Callable[[str], bool] | None = None,
) -> Backbone:
    """Load the backbone `NAME[:SOURCE]` with the quantisation of `strategy`; the strategy is not applied yet.

    Matrices are loaded in `dtype`, see Backbone.load, except those that `fp32` says, by default those that `strategy` needs.
    """
    backbone_class, source = get_backbone(name, plugins=plugins)
    config = quantization_config(strategy, backbone_class.anatomy, backbone_class.never_quantized)
    if dtype == torch.float32:
        backbone = backbone_class.load(source, quantization=config)
    else:
        kept = needs_fp32(backbone_class.anatomy, strategy) if fp32 is None else fp32
        backbone = backbone_class.load(source, quantization=config, dtype=dtype, fp32=kept)
    check_quantized(backbone.model, backbone.anatomy, strategy, backbone.never_quantized)
    keep_as_loaded(backbone.model)
    return backbone
