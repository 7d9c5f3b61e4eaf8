"""Load adapters, medgraft's packages and plain PEFT folders, onto the base model that they were trained on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from medgraft import hardware
from medgraft.adapter.base_name import located_base
from medgraft.adapter.base_weights import check_base
from medgraft.adapter.contents import Contents, check_bytes, read_contents
from medgraft.adapter.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TENSORS, TRAINED_ON, Manifest
from medgraft.adapter.patterns import check_patterns
from medgraft.adapter.tensor_files import StoredTensor
from medgraft.adapter.trained_on import TrainedOn
from medgraft.backbones import Backbone
from medgraft.errors import AdapterError
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_adapter
from medgraft.strategies import Strategy

_logger = logging.getLogger("medgraft")
_TENSORS_A_MODULE = 16


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
    folder: Path, *, plugins: PluginManager, backbone: str | None = None, allow_base_mismatch: bool = False
) -> LoadedAdapter:
    """Load the adapter in `folder` onto its base; `backbone` (`NAME:SOURCE`) locates the base on this machine.

    The kernels used in training are installed if they apply here, so in the run's precision the logits are bit-identical to
    those at saving. AdapterError if files are missing or altered, or if the base has other weights; with
    `allow_base_mismatch` that is a warning. A plain PEFT folder is loaded too if `backbone` is given.
    """
    contents = read_contents(folder)
    check_bytes(contents)
    if contents.manifest is None:
        return _load_plain_peft(contents, plugins, backbone)
    folder, manifest = contents.folder, contents.manifest
    if not contents.weights:
        _logger.warning(f"{folder} holds no trained weights, so it captions as its base does: training changed nothing.")
    base = backbone or located_base(folder, manifest)

    def attach(base: Backbone) -> nn.Module:
        check_base(base, manifest, folder, allow_mismatch=allow_base_mismatch)
        base.model.requires_grad_(False)
        model = _attach_peft(base, contents) if ADAPTER_WEIGHTS in manifest.files else base.model
        if TENSORS in manifest.files:
            _check_fits(base.model, contents.tensors[TENSORS], folder)
            _restore(base.model, load_file(folder / TENSORS))
        return model

    bf16 = manifest.bf16 and hardware.bf16_supported(hardware.device().type)
    loaded, model, acceleration = prepare_adapter(
        base, manifest.strategy_settings, attach, plugins=plugins,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        trained_with=manifest.acceleration,
    )  # fmt: skip
    trained_on = TrainedOn.read(folder) if TRAINED_ON in manifest.files else None
    return LoadedAdapter(loaded, model, manifest, acceleration.installed, trained_on)


def _load_plain_peft(contents: Contents, plugins: PluginManager, backbone: str | None) -> LoadedAdapter:
    if backbone is None:
        raise AdapterError(
            f"{contents.folder} is a plain PEFT adapter and does not say which backbone it is for. Add --backbone NAME:SOURCE."
        )
    _logger.warning(
        f"{contents.folder} is a plain PEFT adapter: without medgraft's digests it cannot be told whether it was altered."
    )
    loaded, model, acceleration = prepare_adapter(
        backbone, Strategy(), lambda base: _attach_peft(base, contents), plugins=plugins
    )
    return LoadedAdapter(loaded, model, None, acceleration.installed)


def _attach_peft(backbone: Backbone, contents: Contents) -> nn.Module:
    from peft import PeftModel

    folder, modules = contents.folder, [name for name, _ in backbone.model.named_modules()]
    check_patterns(folder / ADAPTER_CONFIG, contents.settings or {}, modules)
    if len(contents.tensors[ADAPTER_WEIGHTS]) > _TENSORS_A_MODULE * len(modules):
        raise AdapterError(
            f"{folder} does not fit {backbone.source}: it has more tensors than {len(modules):,} modules can take."
        )
    own = {id(parameter) for parameter in backbone.model.parameters()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.random.fork_rng([]):  # PEFT initialises weights at random before it loads them
                model: Any = PeftModel.from_pretrained(backbone.model, str(folder))
        except Exception as error:  # PEFT raises any kind for settings and tensors that it does not expect
            reason = " ".join(str(error).split()) or type(error).__name__
            raise AdapterError(f"{folder} does not fit {backbone.source}: {reason[:300]}") from error
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in own and parameter.is_floating_point())  # as in training
    lost = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if lost:
        raise AdapterError(f"{folder} does not fit {backbone.source}: {lost[0][:200]}")
    result: nn.Module = model
    return result


def _check_fits(model: nn.Module, tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            found = f"has shape {tuple(own[name].shape)}" if name in own else "does not exist"
            raise AdapterError(f"{folder / TENSORS}: {name} of shape {tensor.shape} {found} in the base.")


@torch.no_grad()
def _restore(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
        own[name].requires_grad_(True)  # kernels cast only frozen weights to bf16
