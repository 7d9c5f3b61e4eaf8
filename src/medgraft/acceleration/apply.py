"""Which kernels there are, where each applies, and installing them on a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from medgraft import hardware
from medgraft.acceleration import causal_loss, cuda_graphs, graphed_decoding, linear, lora, packed_decoder, self_attention
from medgraft.acceleration.swap import Undo, swap
from medgraft.backbones import Backbone
from medgraft.backbones.blip_sdpa import SDPA
from medgraft.errors import ConfigError, suggestion
from medgraft.strategies import quantized_modules

Kernels = Literal["auto", "none"] | tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """Something that computes a part of the model otherwise, to the same result.

    `applies` says whether it is of use on a device, in a compute dtype, for a backbone. `install` puts it on a backbone to
    which the strategy was applied, and returns what takes it off again; None if the model has nothing for it to do.
    """

    name: str
    summary: str
    applies: Callable[[torch.device, torch.dtype, Backbone], bool]
    install: Callable[[Backbone], Undo | None]


def _anywhere(device: torch.device, dtype: torch.dtype, backbone: Backbone) -> bool:
    return True


def _on_cpu(device: torch.device, dtype: torch.dtype, backbone: Backbone) -> bool:
    return device.type == "cpu"


def _on_accelerator(device: torch.device, dtype: torch.dtype, backbone: Backbone) -> bool:
    return device.type != "cpu"


def _on_cuda(device: torch.device, dtype: torch.dtype, backbone: Backbone) -> bool:
    return device.type == "cuda"


def _below_fp32(device: torch.device, dtype: torch.dtype, backbone: Backbone) -> bool:
    return dtype != torch.float32


def _quantized(backbone: Backbone) -> Undo | None:
    if not quantized_modules(backbone.model):
        return None
    from medgraft.acceleration import quantized  # imports bitsandbytes

    return quantized.install(backbone)


# in the order in which they are installed: later ones take what earlier ones left
KERNELS: tuple[Kernel, ...] = (
    Kernel("sdpa", "BLIP's attention by torch's fused function", _anywhere, lambda backbone: swap(backbone.model, SDPA)),
    Kernel(
        "self_attention",
        "BLIP's attention in bf16 by blocks of heads, few tokens step by step",
        _on_cpu,
        self_attention.install,
    ),
    Kernel("linear", "frozen linear weights in the compute dtype", _below_fp32, linear.install),
    Kernel("quantized", "4- and 8-bit layers take and give bf16 under autocast", _anywhere, _quantized),
    Kernel("lora", "LoRA added inside its layer's product", _anywhere, lora.install),
    Kernel("packed_decoder", "BLIP's loss on captions without padding", _on_cpu, packed_decoder.install),
    Kernel("causal_loss", "BLIP's loss at every position, for which nothing is waited", _on_accelerator, causal_loss.install),
    Kernel("cuda_graphs", "training steps replayed as CUDA graphs", _on_cuda, cuda_graphs.install),
    Kernel("graphed_decoding", "BLIP's greedy captions by one CUDA graph a token", _on_cuda, graphed_decoding.install),
)


@dataclass(frozen=True)
class Acceleration:
    """The kernels that a model has. `undo` gives it back its own types, weights, buffers and methods."""

    installed: tuple[str, ...] = ()
    _undo: list[Undo] = field(default_factory=list, repr=False, compare=False)

    def undo(self) -> None:
        """Take off what this call of `accelerate` put on, the last kernel first; a second call does nothing."""
        while self._undo:
            self._undo.pop()()


def accelerate(backbone: Backbone, *, dtype: torch.dtype, kernels: Kernels = "auto") -> Acceleration:
    """Install on `backbone` those of `kernels` that apply on this device, for runs that compute in `dtype`.

    Its strategy has been applied: what is frozen then may be stored in `dtype`. Installing twice is installing once. A kernel
    that does not apply here is left out; one that does not exist is a ConfigError.
    """
    check_kernels(kernels)
    device = hardware.device()
    installed, undo = [], []
    for kernel in KERNELS:
        wanted = kernels == "auto" or (kernels != "none" and kernel.name in kernels)
        taken_off = kernel.install(backbone) if wanted and kernel.applies(device, dtype, backbone) else None
        if taken_off is not None:
            installed.append(kernel.name)
            undo.append(taken_off)
    return Acceleration(tuple(installed), undo)


def check_kernels(kernels: Kernels) -> None:
    """ConfigError if one of `kernels` does not exist."""
    known = [kernel.name for kernel in KERNELS]
    for name in () if isinstance(kernels, str) else kernels:
        if name not in known:
            raise ConfigError(
                f"acceleration.kernels: there is no kernel {name!r}.{suggestion(name, known)} "
                f"Known: auto, none, {', '.join(known)}."
            )
