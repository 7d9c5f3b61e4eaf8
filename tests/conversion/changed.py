"""Packages with weights that matter, without training."""

import torch

from medgraft.adapter import TrainedOn, finish_package, in_place_digests, load_adapter, save_weights
from medgraft.config import GenerationConfig
from medgraft.conversion.outputs import outputs
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import get_strategy
from medgraft.testing.strategy_checks import _manifest

PLUGINS = PluginManager()


def changed_adapter(name, strategy, out, *, seed=0, examples=(), **options):
    """A package of `strategy` on the backbone `name` whose trained parameters were changed at random."""
    plan = get_strategy(strategy, options, plugins=PLUGINS)
    backbone, applied, _ = prepare_model(name, plan, plugins=PLUGINS)
    before = in_place_digests(applied)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in applied.model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=random) * 0.05
    files = save_weights(out, applied, before)
    if examples:
        files = (*files, TrainedOn.of(examples).write(out))
    manifest = _manifest(name, backbone, applied)
    generation = GenerationConfig(max_new_tokens=8).model_dump()
    changes = {"strategy": strategy, "prompt": "", "evaluation": {"generation": generation}}
    finish_package(out, manifest.model_copy(update=changes), files)
    return out


def computed(folder, examples, backbone=None):
    """What the adapter in `folder` computes for `examples`."""
    loaded = load_adapter(folder, plugins=PLUGINS, backbone=backbone, plain=True, dequantized=True)
    return outputs(loaded.backbone, examples, loaded.prompt or "", GenerationConfig(max_new_tokens=8))
