"""Load adapters, medgraft's packages and plain PEFT folders, onto the base model that they were trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from medgraft import hardware
from medgraft.adapter.compact import add_changes, as_peft
from medgraft.adapter.locating import locate_adapter
from medgraft.adapter.manifest import MANIFEST, Manifest, read_manifest, verify_files
from medgraft.adapter.saving import ADAPTER_CONFIG, CHANGES, TENSORS
from medgraft.adapter.trained_on import TRAINED_ON, TrainedOn
from medgraft.backbones import Backbone
from medgraft.errors import AdapterError
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_adapter
from medgraft.strategies import Strategy, dequantize


@dataclass(frozen=True)
class LoadedAdapter:
    """A backbone with an adapter, and its installed kernels.

    `manifest` is None for a plain PEFT folder, `trained_on` also for a package of an older version.
    """

    backbone: Backbone
    model: nn.Module
    manifest: Manifest | None
    acceleration: tuple[str, ...] = ()
    trained_on: TrainedOn | None = None

    @property
    def prompt(self) -> str | None:
        """The prompt used in training; None if unknown, which stands for the backbone's default."""
        return self.manifest.prompt if self.manifest else None


def load_adapter(
    folder: Path, *, plugins: PluginManager, backbone: str | None = None, plain: bool = False, dequantized: bool = False
) -> LoadedAdapter:
    """Load the adapter in `folder` onto its base; `backbone` (`NAME:SOURCE`) locates the base on this machine.

    The kernels used in training are installed if they apply here, so in the run's precision the logits are bit-identical to
    those at saving. With `plain` none are installed and everything is in fp32; with `dequantized` a quantised base has linear
    layers with the values that it stands for.

    AdapterError if files are missing or altered, or if the base has another fingerprint. A plain PEFT folder
    is loaded too if `backbone` is given.
    """
    folder = locate_adapter(folder)
    if not (folder / MANIFEST).is_file() and (folder / ADAPTER_CONFIG).is_file():
        return _load_plain_peft(folder, plugins, backbone, () if plain else None)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)

    def attach(base: Backbone) -> nn.Module:
        _check_base(base, manifest, folder)
        if dequantized:
            dequantize(base.model)
        base.model.requires_grad_(False)
        model: nn.Module = base.model
        if ADAPTER_CONFIG in manifest.files:
            with as_peft(folder, manifest.files) as peft_folder:
                model = _attach_peft(base, peft_folder)
        if TENSORS in manifest.files:
            _restore(base.model, load_file(folder / TENSORS), folder)
        if CHANGES in manifest.files:
            add_changes(base.model, folder)
        return model

    bf16 = manifest.bf16 and not plain and hardware.bf16_supported(hardware.device().type)
    loaded, model, acceleration = prepare_adapter(
        backbone or manifest.backbone, manifest.strategy_settings, attach, plugins=plugins,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        trained_with=() if plain else manifest.acceleration,
    )  # fmt: skip
    trained_on = TrainedOn.read(folder) if TRAINED_ON in manifest.files else None
    return LoadedAdapter(loaded, model, manifest, acceleration.installed, trained_on)


def _load_plain_peft(
    folder: Path, plugins: PluginManager, backbone: str | None, kernels: tuple[str, ...] | None
) -> LoadedAdapter:
    if backbone is None:
        raise AdapterError(
            f"{folder} is a plain PEFT adapter and does not say which backbone it is for. Add --backbone NAME:SOURCE."
        )
    loaded, model, acceleration = prepare_adapter(
        backbone, Strategy(), lambda base: _attach_peft(base, folder), plugins=plugins, trained_with=kernels
    )
    return LoadedAdapter(loaded, model, None, acceleration.installed)


def _check_base(base: Backbone, manifest: Manifest, folder: Path) -> None:
    found = base.fingerprint(base.source)
    if found != manifest.base_fingerprint:
        raise AdapterError(
            f"{folder} was trained on another base: it wants {manifest.backbone} with weights "
            f"{manifest.base_fingerprint[:12]}, but {base.source} has {found[:12]}. "
            "Pass the right one with --backbone NAME:SOURCE."
        )


def _attach_peft(backbone: Backbone, folder: Path) -> nn.Module:
    from peft import PeftModel

    own = {id(parameter) for parameter in backbone.model.parameters()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.random.fork_rng([]):  # PEFT initialises weights at random before it loads them
                model: Any = PeftModel.from_pretrained(backbone.model, str(folder))
        except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
            raise AdapterError(f"{folder} does not fit {backbone.source}: {str(error).splitlines()[0]}") from error
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in own and parameter.is_floating_point())  # as in training
    lost = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if lost:
        raise AdapterError(f"{folder} does not fit {backbone.source}: {lost[0][:200]}")
    result: nn.Module = model
    return result


@torch.no_grad()
def _restore(model: nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            found = f"has shape {tuple(own[name].shape)}" if name in own else "does not exist"
            raise AdapterError(f"{folder / TENSORS}: {name} of shape {tuple(tensor.shape)} {found} in the base.")
        own[name].copy_(tensor)
        own[name].requires_grad_(True)  # kernels cast only frozen weights to bf16
