"""Records the attention weights of a forward pass with hooks on the modules that compute them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from medgraft.backbones import Backbone
from medgraft.errors import BackboneError


class Attentions:
    """Weights [B, H, Q, K] of each layer, by kind of attention: `words`, `queries`, `vision` or `text`."""

    def __init__(self) -> None:
        self._layers: dict[str, list[torch.Tensor]] = {}

    def keep(self, what: str, weights: torch.Tensor) -> None:
        """Add the next layer's weights."""
        self._layers.setdefault(what, []).append(weights)

    def layers(self, what: str) -> list[torch.Tensor]:
        """Weights from the first layer to the last; BackboneError if no module returned any."""
        if what not in self._layers:
            raise BackboneError(f"No attention weights were found for {what!r}: this model does not return them.")
        return self._layers[what]


@contextmanager
def recorded(backbone: Backbone, wanted: dict[str, str | None]) -> Iterator[Attentions]:
    """Record the weights of forward passes inside the block; `wanted` maps kinds to patterns for whole module names."""
    found = Attentions()
    with ExitStack() as stack:
        stack.enter_context(backbone.eager_attention())
        for name, module in backbone.model.named_modules():
            for what, pattern in wanted.items():
                if pattern is not None and re.fullmatch(pattern, name):
                    stack.callback(module.register_forward_hook(_Keep(found, what)).remove)
        yield found


class _Keep:
    def __init__(self, found: Attentions, what: str):
        self.found, self.what = found, what

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        weights = output[-1] if isinstance(output, tuple) else None  # T5 returns a position bias before the weights
        if isinstance(weights, torch.Tensor) and weights.dim() == 4:
            self.found.keep(self.what, weights)


@contextmanager
def graph_below(model: nn.Module) -> Iterator[None]:
    """Let gradients reach the attention weights of every layer, including frozen and quantised ones.

    Inside the block, norms and biases require gradients, so everything after them is in the autograd graph.
    """
    changed = [p for p in model.parameters() if p.dim() == 1 and p.is_floating_point() and not p.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(False)
