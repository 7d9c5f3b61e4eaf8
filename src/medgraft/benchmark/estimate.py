"""Estimates a run's memory and time from the model's shapes and one measurement of the machine.

FLOPs are counted in linear layers: 2 per weight and token forwards, as many for the gradient of the input where one is
needed, and as many for the gradient of the weight where it is trained (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
Memory is weights as they are held, gradients, AdamW's two moments, the activations stored for the backward pass and the
logits. Times are rough, within a factor of two. benchmarks/dry_run_accuracy.py compares both with measurements.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from medgraft import hardware
from medgraft.backbones import Backbone, Usage
from medgraft.benchmark.grid import Load
from medgraft.config import RunConfig
from medgraft.strategies import Applied, Strategy, bare_name
from medgraft.types import PARTS, Part, lies_in

CAPTION = 40  # tokens of a caption: ROCO's median is 26, its mean higher
_UTILISATION = 0.3  # share of the measured FLOP/s in training; token-by-token generation reaches far less
_CAPTIONING = 0.05
# bytes stored for the backward pass per value of a linear layer's input. A block of width d has inputs of 7 d; it stores two
# inputs of norms in fp32, and 14 d in the compute dtype: inputs, queries, keys, values and both sides of the activation
_ACTIVATIONS = {2: 36 / 7, 4: 64 / 7}
_LOGITS = 12  # bytes per logit: as computed, in fp32, and its gradient
_BYTES = {"int8": 1.0, "nf4": 0.57, "fp4": 0.57}
_PROCESS = 700_000_000  # bytes of Python with torch and transformers; counts where no accelerator has its own memory


@dataclass(frozen=True)
class Estimate:
    """Cost of one run in bytes and FLOPs; `memory_bytes` is the accelerator's peak, or the process's without one.

    `loading_bytes` is the process's peak while the base is loaded, with the pages of its files that are read.
    """

    trainable_parameters: int
    total_parameters: int
    memory_bytes: int
    loading_bytes: int
    training_flops_per_image: float
    captioning_flops_per_image: float

    def training_seconds(self, images: int, flops_per_second: float) -> float:
        """Seconds to train on `images` images; each image counts once per epoch."""
        return images * self.training_flops_per_image / flops_per_second / _UTILISATION

    def captioning_seconds(self, images: int, flops_per_second: float) -> float:
        """Seconds to caption `images` images."""
        return images * self.captioning_flops_per_image / flops_per_second / _CAPTIONING


@dataclass(frozen=True)
class RunEstimate:
    """Estimates for one run: seconds are None if the number of images is unknown, `usage` is None unless an API is called.

    `probed`: memory of the run and seconds are those of a probe, scaled to all steps and images.
    """

    backbone: str
    strategy: str
    data: str
    seed: int
    trainable_parameters: int | None
    memory_bytes: int | None
    loading_bytes: int | None
    training_seconds: float | None
    captioning_seconds: float | None
    usage: Usage | None = None
    trained_images: int | None = None  # captions count, each once per epoch
    captioned_images: int | None = None
    probed: bool = False

    @property
    def load(self) -> Load | None:
        """What the run does; None if the data are not here, or an API does it."""
        known = self.trained_images, self.captioned_images, self.training_seconds, self.captioning_seconds
        return None if None in known else Load(self.backbone, self.strategy, *known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Base:
    """A backbone's class, its model's configuration, the bytes of its files, and names of the weights held in 16 bits."""

    backbone: type[Backbone]
    config: PreTrainedConfig
    file_bytes: int
    half: frozenset[str]


def estimate(base: Base, applied: Applied, strategy: Strategy, run: RunConfig, images: float = 1.0) -> Estimate:
    """Estimate `run`, with its strategy `applied` to the meta model of `base`, on examples of so many `images` on average."""
    backbone, config = base.backbone, base.config
    tokens = {part: n if part == "text" else n * images for part, n in backbone.tokens(config, CAPTION).items()}
    trained = [part for part in PARTS if strategy.plan(part).mode != "frozen"]
    passed = PARTS[PARTS.index(trained[0]) :] if trained else ()  # parts that gradients pass through
    forward = backward = activations = 0.0
    batch = run.train.per_device_train_batch_size
    stored = _ACTIVATIONS[hardware.compute_dtype(run.train.dtype).itemsize]
    for part, layer, width in _linear_layers(backbone, applied.model):
        once = 2.0 * layer.weight.numel() * tokens.get(part, 0)
        forward += once
        if part in passed:
            backward += once * (2 if layer.weight.requires_grad else 1)
            activations += batch * tokens.get(part, 0) * width * stored
    activations += batch * tokens.get("text", 0) * config.get_text_config(decoder=True).vocab_size * _LOGITS
    weights = sum(p.numel() * _bytes_per_value(base, n, p, strategy) for n, p in applied.model.named_parameters())
    loading = (
        _PROCESS + weights + (0 if weights >= base.file_bytes else base.file_bytes)
    )  # else the files' pages are the weights
    training = weights + applied.trainable_parameters * 12 + (activations if strategy.trains else 0)
    if hardware.device().type == "cpu":
        training = max(_PROCESS + training, loading)
    return Estimate(
        trainable_parameters=applied.trainable_parameters,
        total_parameters=applied.total_parameters,
        memory_bytes=int(training),
        loading_bytes=int(loading),
        training_flops_per_image=forward + backward if strategy.trains else 0.0,
        captioning_flops_per_image=forward * max(run.generation.num_beams, run.generation.num_return_sequences),
    )


def measured_flops(seconds: float = 0.5) -> float:
    """FLOP/s of this machine: the median over products of 2048 x 2048 matrices, in bf16 if the hardware supports it."""
    where = hardware.device()
    kind = hardware.compute_dtype()
    a, b = (torch.randn(2048, 2048, device=where).to(kind) for _ in range(2))
    a @ b
    _wait(where)
    took: list[float] = []
    start = time.perf_counter()
    while not took or time.perf_counter() - start < seconds:
        began = time.perf_counter()
        a @ b
        _wait(where)
        took.append(time.perf_counter() - began)
    return 2 * 2048**3 / median(took)


def _linear_layers(backbone: type[Backbone], model: nn.Module) -> Iterator[tuple[Part, nn.Linear, int]]:
    """(part, layer, input width) for every linear layer that captioning runs."""
    for name, module in model.named_modules():
        bare = bare_name(name)
        part = backbone.anatomy.part_of(bare)
        if part is None or "lora_" in bare or lies_in(bare, backbone.anatomy.never_run):  # LoRA shares its layer's input
            continue
        if isinstance(module, nn.Linear | Conv1D):
            layer: nn.Linear = module
            yield part, layer, layer.weight.shape[-1] if isinstance(module, nn.Linear) else layer.weight.shape[0]


def _bytes_per_value(base: Base, name: str, parameter: nn.Parameter, strategy: Strategy) -> float:
    """Bytes per value of a parameter."""
    backbone, bare = base.backbone, bare_name(name).replace(".base_layer", "")
    if strategy.quantization == "none":
        return 2.0 if bare in base.half else 4.0
    part = backbone.anatomy.part_of(bare)
    plain = (
        parameter.requires_grad or parameter.ndim != 2 or part is None or strategy.plan(part).mode == "full"
        or lies_in(bare, backbone.never_quantized) or backbone.anatomy.role_of(bare) in ("embed", "head")
    )  # fmt: skip
    return 4.0 if plain else _BYTES[strategy.quantization]


def _wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)
