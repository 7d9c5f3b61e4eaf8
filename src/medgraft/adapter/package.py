"""Save adapter packages, and load them onto the base model that they were trained on.

A package contains `adapter_model.safetensors` and `adapter_config.json` in PEFT's format for the parameters that PEFT added,
`trained_tensors.safetensors` for those trained in place, `trained_on.safetensors`, the manifest `medgraft.json`, and a model
card.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medgraft import hardware
from medgraft.adapter.card import write_card
from medgraft.adapter.manifest import MANIFEST, Manifest, file_entry, read_manifest, verify_files, write_manifest
from medgraft.adapter.trained_on import TRAINED_ON, TrainedOn
from medgraft.backbones import Backbone
from medgraft.backbones.weights import TensorDigest, tensor_digests, tensor_layout
from medgraft.errors import AdapterError
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_adapter
from medgraft.strategies import Applied, Strategy

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
TENSORS = "trained_tensors.safetensors"


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


def save_weights(folder: Path, applied: Applied, base: Mapping[str, str]) -> tuple[str, ...]:
    """Write only the trained weights, replacing an older package in `folder`; returns the names of the files.

    `base` maps parameters trained in place to their digests before training; unchanged tensors are not saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).is_file():
        for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG, TENSORS, TRAINED_ON, MANIFEST):
            (folder / name).unlink(missing_ok=True)
    written: list[str] = []
    if applied.strategy.uses_adapter:
        with warnings.catch_warnings():
            if applied.strategy.method == "ADALORA":  # AdaLoRA may prune a layer to rank 0
                warnings.filterwarnings("ignore", message=".*tensor.s. have invalid shape")
            # by default PEFT contacts the hub to find out whether the vocabulary grew
            applied.model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
        written += [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
    if applied.direct:
        own = dict(_bare_model(applied.model).named_parameters())
        current = {name: own[name].detach().cpu().contiguous() for name in applied.direct}
        digests = tensor_digests(current)
        changed = {name: tensor for name, tensor in current.items() if digests[name] != base[name]}
        save_file(changed, folder / TENSORS, metadata={"format": "pt"})
        written.append(TENSORS)
    return tuple(written)


def finish_package(folder: Path, manifest: Manifest, files: tuple[str, ...]) -> Manifest:
    """Write card and manifest next to the weights; returns the manifest with the digests of `files`."""
    manifest = manifest.model_copy(update={"files": {name: file_entry(folder / name) for name in sorted(files)}})
    write_card(folder, manifest)
    write_manifest(folder, manifest)
    return manifest


def adapter_bytes(manifest: Manifest) -> int:
    """The total size of a package's weight files."""
    return sum(entry.bytes for name, entry in manifest.files.items() if name in (ADAPTER_WEIGHTS, TENSORS))


def load_adapter(folder: Path, *, plugins: PluginManager, backbone: str | None = None) -> LoadedAdapter:
    """Load the adapter in `folder` onto its base; `backbone` (`NAME:SOURCE`) locates the base on this machine.

    The kernels used in training are installed if they apply here, so in the run's precision the logits are bit-identical to
    those at saving. AdapterError if files are missing or altered, or if the base has another fingerprint. A plain PEFT folder
    is loaded too if `backbone` is given.
    """
    if not folder.is_dir():
        raise AdapterError(f"There is no adapter folder {folder}.")
    if not (folder / MANIFEST).is_file() and (folder / ADAPTER_CONFIG).is_file():
        return _load_plain_peft(folder, plugins, backbone)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)

    def attach(base: Backbone) -> nn.Module:
        _check_base(base, manifest, folder)
        base.model.requires_grad_(False)
        model = _attach_peft(base, folder) if ADAPTER_WEIGHTS in manifest.files else base.model
        if TENSORS in manifest.files:
            _restore(base.model, load_file(folder / TENSORS), folder)
        return model

    bf16 = manifest.bf16 and hardware.bf16_supported(hardware.device().type)
    loaded, model, acceleration = prepare_adapter(
        backbone or manifest.backbone, manifest.strategy_settings, attach, plugins=plugins,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        trained_with=manifest.acceleration,
    )  # fmt: skip
    trained_on = TrainedOn.read(folder) if TRAINED_ON in manifest.files else None
    return LoadedAdapter(loaded, model, manifest, acceleration.installed, trained_on)


def in_place_digests(applied: Applied, checkpoint: Mapping[str, TensorDigest] | None = None) -> dict[str, str]:
    """Digests, by name, of the parameters that will be trained in place.

    A parameter found in `checkpoint` with the same dtype and shape is not hashed again. If loading changed its values it
    counts as trained, which only makes the package larger.
    """
    own = dict(_bare_model(applied.model).named_parameters())
    known = {name: checkpoint[name] for name in applied.direct if checkpoint and name in checkpoint}
    same = {name: digest.sha256 for name, digest in known.items() if digest.layout == tensor_layout(own[name])}
    return same | tensor_digests({name: own[name] for name in applied.direct if name not in same})


def _bare_model(model: nn.Module) -> nn.Module:
    base = getattr(model, "get_base_model", None)
    return base() if base is not None else model


def _load_plain_peft(folder: Path, plugins: PluginManager, backbone: str | None) -> LoadedAdapter:
    if backbone is None:
        raise AdapterError(
            f"{folder} is a plain PEFT adapter and does not say which backbone it is for. Add --backbone NAME:SOURCE."
        )
    loaded, model, acceleration = prepare_adapter(
        backbone, Strategy(), lambda base: _attach_peft(base, folder), plugins=plugins
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
