"""Prepare a model from a run's settings: load it, apply the strategy, install kernels, open the feature store.

This order is defined only here. Training, evaluation, adapters, benchmarks and checks all use this module.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from medgraft import hardware
from medgraft.acceleration import KERNELS, Acceleration, Kernels, accelerate, check_kernels
from medgraft.acceleration.fp16 import keep_in_fp32
from medgraft.backbones import AnyBackbone, Backbone, RemoteCaptioner, get_backbone, get_captioner, prompt_for
from medgraft.backbones.fingerprint import fingerprint
from medgraft.backbones.half_weights import Held
from medgraft.backbones.image_size import refuse_size
from medgraft.backbones.weights import TensorDigest
from medgraft.config import AccelerationConfig, RunConfig
from medgraft.device_map import check_devices, refuse_map, spread
from medgraft.errors import ConfigError
from medgraft.features import CachedFeatures, ReusablePrefix, open_cached_features
from medgraft.model_config import ModelConfig
from medgraft.models import load_model, settled
from medgraft.plugin import PluginManager
from medgraft.strategies import Applied, Strategy, apply_strategy
from medgraft.strict_model import validated

_logger = logging.getLogger("medgraft")
ENVIRONMENT = "MEDGRAFT_ACCELERATION"  # overrides `acceleration.kernels`
Attach = Callable[[Backbone], nn.Module]  # puts an adapter's weights onto a base and returns the whole model


@dataclass(frozen=True)
class Prepared:
    """A model ready for training or captioning.

    `features` gives access to the feature store; it is None if no features can be reused, for the reason in `prefix`. For a
    model behind an API `applied` and `prefix` are None. `dtype` is the run's compute dtype, by autocast if it is not fp32.
    `base_digests` are those of Backbone.checkpoint_digests.
    """

    backbone: AnyBackbone
    applied: Applied | None
    acceleration: Acceleration
    base_fingerprint: str
    features: CachedFeatures | None
    prefix: ReusablePrefix | None
    dtype: torch.dtype
    base_digests: Mapping[str, TensorDigest] = field(default_factory=dict)


def prepare(
    config: RunConfig,
    *,
    plugins: PluginManager,
    strategy: Strategy,
    attach: Attach | None = None,
    prompted: bool = False,
) -> Prepared:
    """Prepare the model of a run; `strategy` is the one that `config.strategy` names, with its options applied.

    `attach` puts trainable weights onto the base, with which training starts, instead of new adapters. `prompted`: images have
    prompts of their own.
    """
    kernels, dtype = wanted_kernels(config.acceleration.kernels), compute_dtype(config)
    captioner, source = get_captioner(config.backbone, plugins=plugins)
    if dtype == torch.float16 and strategy.trains and hardware.device().type != "cuda":
        raise ConfigError(
            f"train.dtype=fp16 cannot train on this {hardware.device().type.upper()}: fp16 needs loss scaling, which is there "
            "for CUDA alone. Use bf16, fp32 or auto; captioning in fp16 works."
        )
    if issubclass(captioner, RemoteCaptioner) and not strategy.trains and strategy.quantization == "none":
        refuse_size(captioner, config.image.size, plugins=plugins)
        refuse_map(config.model)
        client = captioner.load(source)
        return Prepared(client, None, Acceleration(), client.fingerprint(client.source), None, None, dtype)
    backbone_class, source = get_backbone(config.backbone, plugins=plugins)
    digests = backbone_class.checkpoint_digests(source)  # before loading, so that the files are not in memory twice
    base = fingerprint(digests) if digests else backbone_class.fingerprint(source)
    backbone, applied, acceleration = _applied(
        config.backbone, strategy, plugins, Held(dtype, placement=config.model), kernels, attach, config.image.size
    )
    if not config.model.spreads:
        backbone.to_device()
    features, prefix = _open_features(backbone, config, dtype, base, prompted)  # reads weights, out of reach later
    if config.model.spreads:
        spread(backbone, trains=strategy.trains)
        _logger.info("kernels under a device map: %s", ", ".join(acceleration.installed) or "none")
    if features is not None and strategy.trains and config.augmentation.on:
        prefix = replace(prefix, reason=f"{prefix.reason}; {_views(config.features.views)}")
    return Prepared(backbone, applied, acceleration, base, features, prefix, dtype, digests)


def prepare_model(
    name: str,
    strategy: Strategy,
    *,
    plugins: PluginManager,
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = "auto",
    attach: Attach | None = None,
    image_size: int | None = None,
) -> tuple[Backbone, Applied, Acceleration]:
    """Load the backbone `NAME[:SOURCE]`, apply `strategy`, install `kernels`, and move it to this process's device."""
    prepared = _applied(name, strategy, plugins, Held(dtype), kernels, attach, image_size)
    prepared[0].to_device()
    return prepared


def _applied(
    name: str,
    strategy: Strategy,
    plugins: PluginManager,
    held: Held,
    kernels: Kernels,
    attach: Attach | None,
    image_size: int | None,
) -> tuple[Backbone, Applied, Acceleration]:
    """As `prepare_model`, with the weights where they were loaded."""
    kernels = wanted_kernels(kernels)
    strategy = settled(name, strategy, plugins=plugins)
    backbone = _loaded(name, strategy, plugins, held, kernels, image_size)
    applied = apply_strategy(backbone.model, backbone.anatomy, strategy, attach=attach and partial(attach, backbone))
    return backbone, applied, accelerate(backbone, dtype=held.dtype, kernels=kernels)


def prepare_adapter(
    name: str,
    strategy: Strategy,
    attach: Attach,
    *,
    plugins: PluginManager,
    held: Held = Held(),
    trained_with: tuple[str, ...] | None = None,
    image_size: int | None = None,
) -> tuple[Backbone, nn.Module, Acceleration]:
    """As `prepare_model`, but `attach` adds trained weights to the base and returns the model.

    `trained_with` names the kernels used in training; those that still exist are installed. If it is unknown, or one of them
    does not apply here because training ran on another kind of device, the kernels are those of "auto". It computes in
    the dtype of `held`, which also says which of the base's weights have to be in fp32 for `attach`, and where they are to
    lie; with a device map the model is frozen.
    """
    wanted = wanted_kernels("auto")  # raises before anything is loaded
    may_hold = wanted if trained_with is None or "linear" in trained_with else ()
    backbone, dtype = _loaded(name, strategy, plugins, held, may_hold, image_size), held.dtype
    model = attach(backbone)
    used = [kernel for kernel in KERNELS if trained_with is not None and kernel.name in trained_with]
    same = trained_with is not None and all(kernel.applies(hardware.device(), dtype, backbone) for kernel in used)
    kernels = wanted_kernels(tuple(kernel.name for kernel in used) if same else "auto")
    acceleration = accelerate(backbone, dtype=dtype, kernels=kernels)
    if held.placement.spreads:
        spread(backbone, trains=False)
    return backbone, model.eval(), acceleration


def prepare_captioner(
    name: str,
    strategy: Strategy,
    *,
    plugins: PluginManager,
    dtype: torch.dtype | None = None,
    image_size: int | None = None,
    placement: ModelConfig = ModelConfig(),
) -> AnyBackbone:
    """Load the backbone `NAME[:SOURCE]` with the quantisation of `strategy`, or the client of a model behind an API.

    It is to compute in `dtype`, by autocast. Below fp32 it is frozen, and held in it as far as autocast casts to it. Without a
    `dtype` its weights are in fp32 and can be trained, unless `placement` has a device map.
    """
    kernels = wanted_kernels("auto")
    captioner, source = get_captioner(name, plugins=plugins)
    if issubclass(captioner, RemoteCaptioner) and not strategy.trains and strategy.quantization == "none":
        refuse_size(captioner, image_size, plugins=plugins)
        refuse_map(placement)
        return captioner.load(source)
    held = Held(dtype or torch.float32, placement=placement)
    backbone = _loaded(name, strategy, plugins, held, kernels, image_size)
    if dtype not in (None, torch.float32):
        backbone.model.requires_grad_(False)
    accelerate(backbone, dtype=held.dtype, kernels=kernels)
    backbone.computes_in = dtype
    if placement.spreads:
        spread(backbone, trains=False)
    return backbone


def wanted_kernels(configured: Kernels) -> Kernels:
    """`configured`, or the kernels in MEDGRAFT_ACCELERATION if it is set; ConfigError for an unknown kernel."""
    named = os.environ.get(ENVIRONMENT)
    kernels = validated(AccelerationConfig, {"kernels": named}, ENVIRONMENT).kernels if named else configured
    check_kernels(kernels)
    return "none" if hardware.is_sharded() else kernels  # they read weights outside the layers that gather them


def compute_dtype(config: RunConfig) -> torch.dtype:
    """The dtype that a run computes in on this machine."""
    return hardware.compute_dtype(config.train.dtype)


def _loaded(
    name: str,
    strategy: Strategy,
    plugins: PluginManager,
    held: Held,
    kernels: Kernels,
    image_size: int | None,
) -> Backbone:
    """The backbone for computing in `held.dtype`, in which weights are loaded if the kernel for such weights is wanted."""
    check_devices(held.placement)
    loaded = held if kernels == "auto" or "linear" in kernels else Held(placement=held.placement)
    backbone = load_model(name, strategy, plugins=plugins, held=loaded, image_size=image_size)
    if held.dtype == torch.float16:
        keep_in_fp32(backbone)
    return backbone


def _views(fixed: int) -> str:
    """What stored features mean for a run whose training images are augmented."""
    if fixed:
        return f"{fixed} augmented views of each training image are stored"
    return "not for training images, which are augmented anew in every epoch (features.views=K stores K views of each)"


def _open_features(
    backbone: Backbone, config: RunConfig, dtype: torch.dtype, base: str, prompted: bool
) -> tuple[CachedFeatures | None, ReusablePrefix]:
    if not config.features.enabled:
        return None, ReusablePrefix(None, "features.enabled is false")
    if hardware.is_sharded():
        return None, ReusablePrefix(None, "the weights are sharded")
    prompt = None if prompted else prompt_for(backbone, config.train.prompt)
    return open_cached_features(backbone, dtype=dtype, prompt=prompt, max_gb=config.features.max_gb, base=base)
