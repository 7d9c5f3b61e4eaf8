"""NEFTune (Jain et al. 2023, arXiv 2310.05914): uniform noise on the embeddings of the text, in training only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.integrations.neftune import neftune_post_forward_hook

from medgraft.backbones import Backbone
from medgraft.errors import ConfigError
from medgraft.training.module import CaptioningModule


@contextmanager
def noisy_embeddings(module: CaptioningModule, alpha: float | None) -> Iterator[None]:
    """Inside the block, add noise of at most `alpha` / sqrt(T C) to embeddings [B, T, C] while `module` is in training mode.

    The noise is transformers', at every embedding that shares the weight of the model's input embedding: T5's decoder has one
    of its own. A frozen text model gets it too, although it stays in eval mode.
    """
    if alpha is None:
        yield
        return

    def add(embedding: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        noisy: torch.Tensor = neftune_post_forward_hook(module, inputs, output)
        return noisy

    module.neftune_noise_alpha = alpha
    handles = [embedding.register_forward_hook(add) for embedding in text_embeddings(module.backbone)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        module.neftune_noise_alpha = None


def text_embeddings(backbone: Backbone) -> list[nn.Module]:
    """The modules that embed the text's tokens; ConfigError if the model does not tell them."""
    found = backbone.model.get_input_embeddings()
    weight = getattr(found, "weight", None)
    every = backbone.model.named_modules()
    modules = {name: m for name, m in every if m is found or (isinstance(m, nn.Embedding) and m.weight is weight)}
    inside = {name: m for name, m in modules.items() if not any(name.startswith(f"{outer}.") for outer in modules)}
    if not inside or any(backbone.anatomy.part_of(name) != "text" for name in inside):
        raise ConfigError(
            f"train.neftune_noise_alpha: {type(backbone.model).__name__}.get_input_embeddings() gives "
            f"{next(iter(inside), None) or 'nothing'}, and no embedding of part 'text'. Leave the setting out."
        )
    return list(inside.values())
