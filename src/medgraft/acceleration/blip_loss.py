"""Installing another way to compute BLIP's loss, with the decoder attention that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from medgraft.acceleration.swap import Undo, swap
from medgraft.backbones import Backbone, TextBatch
from medgraft.backbones.blip import BlipBackbone
from medgraft.backbones.blip_sdpa import SdpaBlipTextSelfAttention

Loss = Callable[[torch.Tensor, TextBatch], torch.Tensor]


def all_attention_is(decoder: nn.Module, kind: type[SdpaBlipTextSelfAttention]) -> bool:
    """Whether every attention module of `decoder` is a `kind` and none is in eager mode."""
    modules = [module for module in decoder.modules() if isinstance(module, BlipTextSelfAttention)]
    return all(isinstance(module, kind) and not module.eager for module in modules)


def install_loss(
    backbone: Backbone,
    loss: Callable[[BlipBackbone], Loss],
    attention: type[SdpaBlipTextSelfAttention],
    replaced: Iterable[type[nn.Module]],
) -> Undo | None:
    """Install `loss` on a BLIP whose `loss` is not overridden, and `attention` in place of the decoder types `replaced`."""
    if not isinstance(backbone, BlipBackbone) or type(backbone).loss is not BlipBackbone.loss:
        return None
    back = swap(backbone.model, dict.fromkeys(replaced, attention))
    new = loss(backbone)
    if back is None or isinstance(backbone.__dict__.get("loss"), type(new)):
        return back
    backbone.loss = new  # type: ignore[method-assign,assignment]

    def undo() -> None:
        del backbone.loss
        back()

    return undo
