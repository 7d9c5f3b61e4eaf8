"""Frozen layers that hold their weights in the compute dtype, so that autocast need not cast them at every use."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from medgraft.acceleration.effective_weight import EffectiveWeight, of_linear
from medgraft.acceleration.swap import Undo, swap
from medgraft.backbones import Backbone
from medgraft.backbones.loading import leave_file
from medgraft.strategies import moves_base, reads_once
from medgraft.types import lies_in

_WRAPPED = ".base_layer"  # PEFT's suffix for the name of a layer that it wraps


class FrozenLinear(nn.Linear):
    """A linear layer in 16 bits; equals the fp32 layer under autocast. Without autocast it returns its input's dtype."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        output = linear(input.to(self.weight.dtype), self.weight, bias)
        return output if torch.is_autocast_enabled(input.device.type) else output.to(input.dtype)

    def as_effective_weight(self) -> EffectiveWeight:
        """See medgraft.acceleration.effective_weight."""
        return of_linear(self)


class FrozenConv1D(Conv1D):
    """The same for GPT-2's transposed linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        flat = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        output = torch.addmm(self.bias.to(self.weight.dtype), flat, self.weight).view(*x.shape[:-1], self.nf)
        return output if torch.is_autocast_enabled(x.device.type) else output.to(x.dtype)


class FrozenEmbedding(nn.Embedding):
    """An embedding that is stored in 16 bits, with the fp32 values of an embedding loaded in fp32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[...] to [..., C]."""
        return super().forward(input).float()


_FROZEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FrozenLinear, Conv1D: FrozenConv1D, nn.Embedding: FrozenEmbedding,
}  # fmt: skip


def install(backbone: Backbone, dtype: torch.dtype) -> Undo | None:
    """Install on frozen layers, except those in `keep_in_fp32` and those whose weight an adapter also uses on its own.

    Embeddings are left as they were loaded. Matrices that were loaded in fp32 are freed, except for those that PiSSA changed;
    removing the kernel reads them from the checkpoint again.
    """
    model: nn.Module = backbone.model
    frozen: dict[str, Any] = {n: module for n, module in model.named_modules() if _may_change(n, module, backbone, dtype)}
    changed = {name: module for name, module in frozen.items() if module.weight.dtype != dtype}
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    # weights shared with another module, such as an embedding, which keeps the fp32 tensor, and those that no file has
    moved = any(moves_base(config) for config in getattr(model, "peft_config", {}).values())
    kept = {n: m.weight for n, m in changed.items() if owners[id(m.weight)] > 1 or (moved and n.endswith(_WRAPPED))}
    for layer in changed.values():
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    back = swap(model, _FROZEN, lambda name, module: name in frozen)
    if back is None:
        return None
    if changed:
        leave_file(model)

    def undo() -> None:
        back()
        for name, weight in kept.items():
            changed[name].weight = weight
        if dropped := changed.keys() - kept.keys():
            plain: Any = type(backbone).load(backbone.source).model
            for name in dropped:
                weight = plain.get_submodule(name.replace(_WRAPPED, "")).weight.detach()
                changed[name].weight = nn.Parameter(weight.to(changed[name].weight.device), requires_grad=False)

    return undo


def _may_change(name: str, module: Any, backbone: Backbone, dtype: torch.dtype) -> bool:
    if type(module) not in _FROZEN or lies_in(name, backbone.keep_in_fp32):
        return False
    loaded = module.weight.dtype
    if module.weight.requires_grad or (loaded != dtype and (loaded != torch.float32 or type(module) is nn.Embedding)):
        return False
    return not name.endswith(_WRAPPED) or reads_once(backbone.model.get_submodule(name.removesuffix(_WRAPPED)))
