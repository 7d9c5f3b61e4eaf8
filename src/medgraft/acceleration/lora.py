"""LoRA's sum W x + s B A x (Hu et al. 2021, equation 3), fused into the product with B.

PEFT multiplies B A x by s and adds it to W x: two more passes over a tensor of the output's size, each rounded to the compute
dtype. The gradient of B is computed here as (h^T g)^T, because MKL took up to seven times as long for autograd's g^T h at
ranks below 16. LoRA is added in place to W x and to the input's gradient, which saves memory traffic: a step of BLIP-base's
LoRA on a Xeon with AMX went from 2.84 to 2.66 s. Tensors, names and files stay PEFT's. Only first derivatives are supported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft.tuners import lora
from torch import nn
from torch.autograd.function import once_differentiable

from medgraft.acceleration.effective_weight import EffectiveWeight, effective_weight
from medgraft.acceleration.swap import Undo, swap
from medgraft.backbones import Backbone
from medgraft.strategies import quantized_modules


class _LoraSum(torch.autograd.Function):
    """base [N, out] + scaling * (x [N, in] A^T) B^T, all in one dtype."""

    @staticmethod
    def forward(
        ctx: Any, base: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        hidden = x @ a.t()  # [N, r]
        ctx.save_for_backward(x, hidden, a, b)
        ctx.scaling = scaling
        return torch.addmm(base, hidden, b.t(), alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, hidden, a, b = ctx.saved_tensors
        grad_hidden, grad_a, grad_b = _gradients(grad, x, hidden, b, ctx.scaling, ctx.needs_input_grad[2:4])
        return grad, grad_hidden @ a if ctx.needs_input_grad[1] else None, grad_a, grad_b, None


class _LoraProduct(torch.autograd.Function):
    """x [N, in] W^T + bias + scaling * (x A^T) B^T, all in one dtype; W, which `weight` returns, is frozen.

    This function also computes the base layer's product, so LoRA can be added to it in place, forward and backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        bias: torch.Tensor | None,
        weight: Callable[[], torch.Tensor],
        scaling: float,
    ) -> torch.Tensor:
        w = weight()
        output, hidden = _sum(x, a, b, bias, w, scaling)
        stored = isinstance(w, nn.Parameter)  # not dequantised for this product
        ctx.save_for_backward(x, hidden, a, b, w if stored else None)
        ctx.weight, ctx.scaling = weight, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, hidden, a, b, w = ctx.saved_tensors
        to_x, to_a, to_b, to_bias = ctx.needs_input_grad[:4]
        grad_x = None
        with torch.autocast(grad.device.type, enabled=False):
            grad_hidden, grad_a, grad_b = _gradients(grad, x, hidden, b, ctx.scaling, (to_a, to_b))
            if to_x:
                grad_x = grad @ (ctx.weight() if w is None else w)
                torch.addmm(grad_x, grad_hidden, a, out=grad_x)
        return grad_x, grad_a, grad_b, grad.sum(0) if to_bias else None, None, None


def _sum(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, w: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum [N, out] and its low-rank product [N, r], without gradients."""
    hidden = x @ a.t()
    output = nn.functional.linear(x, w, bias)
    return torch.addmm(output, hidden, b.t(), alpha=scaling, out=output), hidden


def _gradients(
    grad: torch.Tensor, x: torch.Tensor, hidden: torch.Tensor, b: torch.Tensor, scaling: float, wanted: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of the low-rank `hidden` [N, r], of A and of B; None for A or B if not `wanted`."""
    if grad.device.type != "cpu":
        return _gradients_in_three_kernels(grad, x, hidden, b, scaling, wanted)
    grad_hidden = (grad @ b.t().contiguous().t()).mul_(scaling)  # B column-major, which MKL multiplies faster too
    grad_a = grad_hidden.t().contiguous() @ x if wanted[0] else None
    grad_b = ((hidden * scaling).t().contiguous() @ grad).t() if wanted[1] else None
    return grad_hidden, grad_a, grad_b


def _gradients_in_three_kernels(
    grad: torch.Tensor, x: torch.Tensor, hidden: torch.Tensor, b: torch.Tensor, scaling: float, wanted: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The same for an accelerator, where each copy costs a kernel launch and transposed operands are fast."""
    ignored = grad.new_empty(1)  # addmm does not read it with beta=0
    grad_hidden = torch.addmm(ignored, grad, b, beta=0, alpha=scaling)
    grad_a = grad_hidden.t() @ x if wanted[0] else None
    grad_b = torch.addmm(ignored, grad.t(), hidden, beta=0, alpha=scaling) if wanted[1] else None
    return grad_hidden, grad_a, grad_b


class FusedLora:
    """Mixin for a PEFT layer that fuses plain LoRA; everything else is left to PEFT's forward."""

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[..., in] to [..., out]."""
        name = self._plain_adapter()
        if name is None or args or kwargs:
            output: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return output
        casting = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if casting else self.lora_A[name].weight.dtype
        a, b = self.lora_A[name].weight.to(dtype), self.lora_B[name].weight.to(dtype)
        inputs, scaling = self.lora_dropout[name](x.to(dtype)), self.scaling[name]
        own = self.as_effective_weight() if x.device.type in ("cpu", "cuda") else None
        if own is not None and own.dtype == dtype and not own.trained:
            bias = own.bias.to(dtype) if own.bias is not None else None
            with torch.autocast(x.device.type, enabled=False):
                flat = inputs.reshape(-1, inputs.shape[-1])
                if torch.is_grad_enabled():
                    output = _LoraProduct.apply(flat, a, b, bias, own.weight, scaling)  # type: ignore[no-untyped-call]
                else:  # takes 6 to 8 % off captioning from stored features
                    output, _ = _sum(flat, a, b, bias, own.weight(), scaling)
            return output.view(*x.shape[:-1], output.shape[-1])
        base = self.base_layer(x)
        if base.dtype != dtype:  # the base layer computes in another dtype than the adapter
            summed: torch.Tensor = base + nn.functional.linear(nn.functional.linear(inputs, a), b) * scaling
            return summed.to(base.dtype)
        with torch.autocast(x.device.type, enabled=False):
            rows = base.reshape(-1, base.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
            total: torch.Tensor = _LoraSum.apply(*rows, a, b, scaling)  # type: ignore[no-untyped-call]
        return total.view(base.shape)

    def _get_name(self) -> str:
        """The name in `repr`: that of PEFT's layer, which this is for everyone but the processor."""
        return next(kind.__name__ for kind in type(self).__mro__ if kind.__module__.startswith("peft."))

    def as_effective_weight(self: Any) -> EffectiveWeight | None:
        """See medgraft.acceleration.effective_weight."""
        name = self._plain_adapter()
        base = effective_weight(self.base_layer) if name is not None else None
        if base is None or (self.training and getattr(self.lora_dropout[name], "p", 0.0) > 0):
            return None
        return replace(base, a=self.lora_A[name].weight, b=self.lora_B[name].weight, scaling=self.scaling[name])

    def _plain_adapter(self: Any) -> str | None:
        """The name of the only active adapter, if it is plain LoRA: no variant, bias or hooks, not merged or sharded."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] in self.lora_variant:
            return None
        a, b = self.lora_A[active[0]], self.lora_B[active[0]]
        plain = all(type(m) is nn.Linear and not m._forward_hooks and not m._forward_pre_hooks for m in (a, b))
        return active[0] if plain and b.bias is None else None


class FusedLoraLinear(FusedLora, lora.Linear):
    """Fused LoRA on a linear layer or GPT-2's Conv1D."""


def install(backbone: Backbone) -> Undo | None:
    """Install on PEFT's LoRA layers, including those on quantised layers."""
    table: dict[type[nn.Module], type[nn.Module]] = {lora.Linear: FusedLoraLinear}
    if quantized_modules(backbone.model):
        from medgraft.acceleration.quantized import FUSED_LORA

        table |= FUSED_LORA
    return swap(backbone.model, table, lambda name, module: not getattr(module, "lora_variant", None))  # DoRA and others
