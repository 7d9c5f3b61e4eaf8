"""Linear layers under bf16 autocast: frozen weights held in bf16, and products as quick as the CPU has them."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from medgraft import linear_product
from medgraft.backbones import Backbone
from medgraft.backbones.loading import leave_file
from medgraft.projection import Projection, linear
from medgraft.strategies import Applied, bare_name
from medgraft.types import lies_in

_READS_WEIGHTS_ONCE = ("LORA", "IA3")  # PEFT methods that use a layer's weight in its own product and nowhere else


class _OneMatrix(nn.Linear):
    def as_projection(self) -> Projection:
        """See medgraft.projection.projection_of."""
        return linear(self)


class HeldLinear(_OneMatrix):
    """A frozen linear layer in bf16; gives what the fp32 layer gives under bf16 autocast, and its input's dtype without."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        output = linear_product.linear(input.to(self.weight.dtype), self.weight, self.bias)
        return output if torch.is_autocast_enabled(input.device.type) else output.to(input.dtype)


class TrainedLinear(_OneMatrix):
    """A trained layer with a bias; gives what the plain layer gives, in training up to rounding."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        if _trains_in_bf16(input):
            return linear_product.linear(input.to(torch.bfloat16), self.weight, self.bias)
        return super().forward(input)


class TrainedPatchEmbedding(nn.Conv2d):
    """A trained convolution of patches that do not overlap, a vision transformer's first layer: a linear layer on each patch.

    Forwards and back 11 ms for BLIP-base's, where oneDNN's convolution takes 33.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, in, H, W] to [B, out, rows, columns]."""
        if not _trains_in_bf16(input):
            return super().forward(input)
        batch, channels, *size = input.shape
        height, width = self.kernel_size
        rows, columns = size[0] // height, size[1] // width
        whole = input[..., : rows * height, : columns * width].to(torch.bfloat16)
        patches = whole.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        output = linear_product.linear(patches.flatten(3).flatten(1, 2), self.weight.flatten(1), self.bias)
        return output.transpose(1, 2).view(batch, self.out_channels, rows, columns)


def _trains_in_bf16(input: torch.Tensor) -> bool:
    """On a CPU, with gradients: without, autocast keeps rounded weights from call to call, and bits are to be torch's."""
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return input.device.type == "cpu" and autocast and torch.is_grad_enabled()


class HeldConv1D(Conv1D):
    """GPT-2's transposed linear layer, in the same way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        flat = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        output = torch.addmm(self.bias.to(self.weight.dtype), flat, self.weight).view(*x.shape[:-1], self.nf)
        return output if torch.is_autocast_enabled(x.device.type) else output.to(x.dtype)


def _trained(layer: nn.Module) -> type[nn.Module] | None:
    """What a layer with trained weights becomes, if anything."""
    if type(layer) is nn.Linear and layer.weight.requires_grad and layer.bias is not None:
        return TrainedLinear
    if type(layer) is nn.Conv2d and layer.weight.requires_grad and layer.kernel_size == layer.stride:
        return TrainedPatchEmbedding if layer.padding == (0, 0) and layer.dilation == (1, 1) and layer.groups == 1 else None
    return None


_HELD: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: HeldLinear, Conv1D: HeldConv1D}


def prepare_linear(backbone: Backbone, applied: Applied) -> int:
    """Prepare linear layers and patch embedding for bf16 autocast; the number of frozen layers whose weights changed to bf16.

    For runs under bf16 autocast, which would round weights and products anyway. Layers that the backbone keeps in fp32 are
    left, as are those whose weights a PEFT method reads for more than the product. Trained layers keep their weights.
    """
    strategy = applied.strategy
    plain = strategy.method in _READS_WEIGHTS_ONCE and not strategy.options.get("use_dora")
    changed = 0
    for name, module in backbone.model.named_modules():
        if lies_in(bare_name(name), backbone.keep_in_fp32):
            continue
        trained = _trained(module)
        if trained is not None:
            module.__class__ = trained
            continue
        held = _HELD.get(type(module))
        wrapped = name.endswith(".base_layer")
        if held is None or module.weight.requires_grad or module.weight.dtype != torch.float32 or (wrapped and not plain):
            continue
        # a new parameter, since an embedding may share the old one and is to stay as it is
        module.weight = nn.Parameter(module.weight.detach().to(torch.bfloat16), requires_grad=False)
        module.__class__ = held
        changed += 1
    leave_file(backbone.model)
    return changed
