"""Packages with weights that matter, without training."""

import json

import torch

from medgraft.adapter import TrainedOn, in_place_digests, load_adapter, save_weights, write_package
from medgraft.config import GenerationConfig
from medgraft.conversion.outputs import outputs
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import get_strategy
from medgraft.testing.strategy_checks import _manifest

PLUGINS = PluginManager()


def changed_adapter(name, strategy, out, *, seed=0, examples=(), **options):
    """A package of `strategy` on the backbone `name` whose trained parameters were changed at random.

    Beside it is a run's record that names the base, for all packages there.
    """
    plan = get_strategy(strategy, options, plugins=PLUGINS)
    backbone, applied, _ = prepare_model(name, plan, plugins=PLUGINS)
    before = in_place_digests(applied)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in applied.model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=random) * 0.05
    manifest = _manifest(name, backbone, applied)
    generation = GenerationConfig(max_new_tokens=8).model_dump()
    training = manifest.training | {"model_class": backbone.model_class}
    changes = {"strategy": strategy, "prompt": "", "evaluation": {"generation": generation}, "training": training}

    def write_files(folder):
        files = save_weights(folder, applied, before)
        return (*files, TrainedOn.of(examples).write(folder)) if examples else files

    write_package(out, manifest.model_copy(update=changes), write_files)
    record = {"config": {"backbone": name}, "base_fingerprint": manifest.base_fingerprint}
    (out.parent / "record.json").write_text(json.dumps(record))
    return out


def computed(folder, examples, backbone=None):
    """What the adapter in `folder` computes for `examples`."""
    loaded = load_adapter(folder, plugins=PLUGINS, backbone=backbone, plain="dequantized")
    return outputs(loaded.backbone, examples, loaded.prompt or "", GenerationConfig(max_new_tokens=8))
