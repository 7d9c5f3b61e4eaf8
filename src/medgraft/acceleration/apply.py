"""The list of kernels, where each applies, and how they are installed on a model."""

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
    """A faster implementation of a part of the model, with the same result.

    `applies` tells whether the kernel is useful for a device, a compute dtype and a backbone. `install` adds it to a backbone
    that computes in a dtype, after its strategy was applied, and returns a function that removes it, or None if the model has
    nothing to accelerate. With `by_modules` each module uses only its own weights, and those of others through their forward
    pass, as hooks of a device map need.
    """

    name: str
    summary: str
    applies: Callable[[torch.device, torch.dtype, Backbone], bool]
    install: Callable[[Backbone, torch.dtype], Undo | None]
    by_modules: bool = False


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


def _of_any(install: Callable[[Backbone], Undo | None]) -> Callable[[Backbone, torch.dtype], Undo | None]:
    """`install` of a kernel that is the same for every compute dtype."""
    return lambda backbone, dtype: install(backbone)


def _sdpa(backbone: Backbone) -> Undo | None:
    return swap(backbone.model, SDPA)


def _quantized(backbone: Backbone) -> Undo | None:
    if not quantized_modules(backbone.model):
        return None
    from medgraft.acceleration import quantized  # imports bitsandbytes

    return quantized.install(backbone)


# in order of installation: later kernels replace modules that earlier ones left or installed
KERNELS: tuple[Kernel, ...] = (
    Kernel("sdpa", "BLIP's attention by torch's fused function", _anywhere, _of_any(_sdpa), by_modules=True),
    Kernel(
        "self_attention",
        "BLIP's attention in bf16: blocks of heads in the encoder, unfused for few tokens in the decoder",
        _on_cpu,
        _of_any(self_attention.install),
    ),
    Kernel("linear", "frozen linear weights in the compute dtype", _below_fp32, linear.install, by_modules=True),
    Kernel(
        "quantized",
        "4- and 8-bit layers with bf16 input and output under autocast",
        _anywhere,
        _of_any(_quantized),
        by_modules=True,
    ),
    Kernel("lora", "LoRA fused with its base layer's matrix product", _anywhere, _of_any(lora.install)),
    Kernel("packed_decoder", "BLIP's loss on captions without padding", _on_cpu, _of_any(packed_decoder.install)),
    Kernel(
        "causal_loss", "BLIP's loss at every position, without synchronising", _on_accelerator, _of_any(causal_loss.install)
    ),
    Kernel("cuda_graphs", "training steps replayed as CUDA graphs", _on_cuda, _of_any(cuda_graphs.install)),
    Kernel(
        "graphed_decoding",
        "BLIP's greedy decoding, one CUDA graph replay per token",
        _on_cuda,
        _of_any(graphed_decoding.install),
    ),
)


@dataclass(frozen=True)
class Acceleration:
    """The kernels installed on a model. `undo` restores the model's own classes, weights, buffers and methods."""

    installed: tuple[str, ...] = ()
    _undo: list[Undo] = field(default_factory=list, repr=False, compare=False)

    def undo(self) -> None:
        """Remove the kernels that this call of `accelerate` installed, in reverse order; a second call does nothing."""
        while self._undo:
            self._undo.pop()()


def accelerate(backbone: Backbone, *, dtype: torch.dtype, kernels: Kernels = "auto") -> Acceleration:
    """Install those of `kernels` that apply to `backbone` on this device, for runs that compute in `dtype`.

    Apply the strategy first: frozen weights may be converted to `dtype`. Installing a kernel twice has no further effect.
    Kernels that do not apply here, or not to a model that is spread over devices, are skipped; an unknown name is a
    ConfigError.
    """
    check_kernels(kernels)
    device = hardware.device()
    installed, undo = [], []
    for kernel in KERNELS:
        wanted = kernels == "auto" or (kernels != "none" and kernel.name in kernels)
        wanted = wanted and (kernel.by_modules or not backbone.placement.spreads)
        remove = kernel.install(backbone, dtype) if wanted and kernel.applies(device, dtype, backbone) else None
        if remove is not None:
            installed.append(kernel.name)
            undo.append(remove)
    return Acceleration(tuple(installed), undo)


def check_kernels(kernels: Kernels) -> None:
    """Raise ConfigError if one of `kernels` does not exist."""
    known = [kernel.name for kernel in KERNELS]
    for name in () if isinstance(kernels, str) else kernels:
        if name not in known:
            raise ConfigError(
                f"acceleration.kernels: there is no kernel {name!r}.{suggestion(name, known)} "
                f"Known: auto, none, {', '.join(known)}."
            )
