"""BLIP's perceptron in the vision tower, whose activations are computed again going back instead of kept.

The activation keeps what comes in and the layer after it what comes out, [B, T, 4 C] each. The second is made from the first
again when it is needed, bit for bit (Chen et al. 2016, arXiv 1604.06174: results of cheap operations are dropped).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.blip.modeling_blip import BlipMLP


class FrugalBlipMLP(BlipMLP):
    """The vision tower's perceptron; [B, T, C] to [B, T, C]."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As in transformers."""
        before = self.fc1(hidden_states)
        after = self.activation_fn(before)
        with _made_again(after, lambda: self.activation_fn(before)):
            output: torch.Tensor = self.fc2(after)
        return output


def compute_activations_again(model: nn.Module) -> None:
    """Switch every perceptron of a BLIP's vision tower."""
    for module in model.modules():
        if type(module) is BlipMLP:
            module.__class__ = FrugalBlipMLP


def _made_again(tensor: torch.Tensor, make: Callable[[], torch.Tensor]) -> AbstractContextManager[None]:
    """Have autograd keep `make` instead of `tensor` inside the block, whatever shape it is saved in."""
    if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return nullcontext()  # without a graph, or under activation checkpointing, which keeps nothing in here anyway
    address, elements = tensor.data_ptr(), tensor.numel()  # and not the tensor, which is to be freed

    def pack(saved: torch.Tensor) -> torch.Tensor | torch.Size:
        same = saved.data_ptr() == address and saved.numel() == elements and saved.is_contiguous()
        return saved.shape if same else saved

    def unpack(kept: torch.Tensor | torch.Size) -> torch.Tensor:
        return make().view(kept) if isinstance(kept, torch.Size) else kept

    return saved_tensors_hooks(pack, unpack)
