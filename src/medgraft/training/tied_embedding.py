"""Gradients of an embedding that is the output layer's matrix as well.

torch makes a gradient of the whole vocabulary for the few words of a batch and adds it to the output layer's: for BLIP-base
two tensors of 94 MB, and 1 to 3 % of a step on stored features on two threads of a Xeon (alternated within one run). Here the
words' rows are added to the output layer's gradient where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _TiedEmbedding(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Word ids [...] to [..., C]."""
        whole = type(self.weight) is nn.Parameter and self.weight.device.type == "cpu"  # on this device, no shard of it
        if not (whole and torch.is_grad_enabled()):
            return super().forward(input)
        rows: torch.Tensor = _Rows.apply(self.weight, input, self.padding_idx)  # type: ignore[no-untyped-call]
        return rows


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        ctx.weight = weight
        words = ids.flatten()
        ctx.words = words if padding is None else words.masked_fill(words == padding, -1)
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        """Nothing by itself: the rows go into the gradient that the output layer made, as torch hands it to the weight."""
        taken = ctx.words >= 0

        def add(whole: torch.Tensor | None) -> torch.Tensor:
            hook.remove()
            if whole is None:
                raise RuntimeError("The loss does not depend on the output layer that the embedding is tied to; untie them.")
            return whole.index_add_(0, ctx.words[taken], gradient.flatten(0, -2)[taken].to(whole.dtype))

        hook = ctx.weight.register_hook(add)
        return None, None, None


@contextmanager
def tied_rows(model: nn.Module) -> Iterator[None]:
    """Have trained embeddings that share an output layer's matrix add to its gradient inside the block.

    The loss has to depend on that output layer by a product with its matrix, as those of captions do.
    """
    outputs = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    tied = [module for module in model.modules() if _adds(module) and id(module.weight) in outputs]
    for module in tied:
        module.__class__ = _TiedEmbedding
    try:
        yield
    finally:
        for module in tied:
            module.__class__ = nn.Embedding


def _adds(module: nn.Module) -> bool:
    """Whether it is a plain embedding with a gradient that is the sum over its words."""
    if type(module) is not nn.Embedding or module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return False
    return module.weight.requires_grad
