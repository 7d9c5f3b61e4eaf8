"""Load a base model, quantised if the strategy requests it, and undo that."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from medgraft.backbones import Backbone, get_backbone
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, check_quantized, keep_as_loaded, quantization_config, quantized_modules


def load_model(name: str, strategy: Strategy, *, plugins: PluginManager) -> Backbone:
    """Load the backbone `NAME[:SOURCE]` with the quantisation of `strategy`; the strategy is not applied yet."""
    backbone_class, source = get_backbone(name, plugins=plugins)
    config = quantization_config(strategy, backbone_class.anatomy, backbone_class.never_quantized)
    backbone = backbone_class.load(source, quantization=config)
    check_quantized(backbone.model, backbone.anatomy, strategy, backbone.never_quantized)
    keep_as_loaded(backbone.model)
    return backbone


def dequantize(backbone: Backbone) -> None:
    """Replace quantised layers by the ones of the unquantised model, with the values that they stand for, in fp32."""
    model: Any = backbone.model
    if not quantized_modules(model):
        return
    model.dequantize(torch.float32)
    for name, layer in backbone.meta_model(backbone.config).named_modules():
        if isinstance(layer, Conv1D) and isinstance(linear := model.get_submodule(name), nn.Linear):
            layer.weight = nn.Parameter(linear.weight.T.contiguous(), requires_grad=False)  # transformers had transposed it
            layer.bias = linear.bias
            model.set_submodule(name, layer)
