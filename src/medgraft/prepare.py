"""From a run's settings to a model that is ready: load, apply the strategy, open the stored features."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medgraft import hardware
from medgraft.adapter import load_captioner
from medgraft.backbones import AnyBackbone, Backbone, prompt_for, split_name
from medgraft.config import RunConfig
from medgraft.features import CachedFeatures, ReusablePrefix, open_cached_features
from medgraft.plugin import PluginManager
from medgraft.strategies import Applied, Strategy, apply_strategy
from medgraft.training import prepare_linear, uses_bf16


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be trained or to caption.

    `features` are those that the store has or will have, None if none can be reused; `prefix` says why. A model behind an
    API has neither `applied` nor `prefix`. `dtype` is the one that the run computes in, by autocast if it is not fp32.
    """

    backbone: AnyBackbone
    applied: Applied | None
    base_fingerprint: str
    features: CachedFeatures | None
    prefix: ReusablePrefix | None
    dtype: torch.dtype


def prepare(config: RunConfig, *, plugins: PluginManager, strategy: Strategy) -> Prepared:
    """What a run starts from; `strategy` is what `config.strategy` names, with its options."""
    dtype = torch.bfloat16 if uses_bf16(config) else torch.float32
    backbone = load_captioner(config.backbone, strategy, plugins=plugins)
    base = backbone.fingerprint(backbone.source)
    if not isinstance(backbone, Backbone):
        return Prepared(backbone, None, base, None, None, dtype)
    name, source = split_name(config.backbone)
    applied = apply_strategy(backbone.model, backbone.anatomy, strategy, base=source or name)
    if dtype == torch.bfloat16:
        prepare_linear(backbone, applied)
    backbone.model.to(hardware.device()).eval()
    if not config.features.enabled:
        return Prepared(backbone, applied, base, None, ReusablePrefix(None, "features.enabled is false"), dtype)
    prompt = prompt_for(backbone, config.train.prompt)
    bf16 = dtype == torch.bfloat16
    cached, prefix = open_cached_features(backbone, bf16=bf16, prompt=prompt, max_gb=config.features.max_gb, base=base)
    return Prepared(backbone, applied, base, cached, prefix, dtype)
