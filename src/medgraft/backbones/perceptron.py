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
        kept = not before.requires_grad or _others_keep()  # without a gradient nothing else would keep what it is made of
        with nullcontext() if kept else _made_again(after, lambda: self.activation_fn(before)):
            output: torch.Tensor = self.fc2(after)
        return output


def compute_activations_again(model: nn.Module) -> None:
    """Switch every perceptron of a BLIP's vision tower."""
    for module in model.modules():
        if type(module) is BlipMLP:
            module.__class__ = FrugalBlipMLP


def _made_again(tensor: torch.Tensor, make: Callable[[], torch.Tensor]) -> AbstractContextManager[None]:
    """Have autograd keep `make` instead of `tensor` inside the block, whatever shape it is saved in."""
    address, elements = tensor.data_ptr(), tensor.numel()  # and not the tensor, which is to be freed

    def pack(saved: torch.Tensor) -> torch.Size | tuple[torch.Tensor, int]:
        dense = saved.layout == torch.strided and saved.is_contiguous()  # PEFT's SHiRA keeps sparse ones
        same = dense and saved.data_ptr() == address and saved.numel() == elements
        return saved.shape if same else (saved.detach(), saved._version)

    def unpack(kept: torch.Size | tuple[torch.Tensor, int]) -> torch.Tensor:
        if isinstance(kept, torch.Size):
            return make().view(kept)
        saved, version = kept
        if saved._version != version:  # what torch asks of tensors that it keeps itself
            raise RuntimeError("A tensor of the perceptron's second layer was changed in place before the backward pass.")
        return saved

    return saved_tensors_hooks(pack, unpack)


def _others_keep() -> bool:
    """Whether something else decides what is kept, as activation checkpointing does. torch tells from 2.8 on."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or torch.compiler.is_compiling() or top(False) is not None
