"""Several adapters of one base as one: PEFT's weighted combinations, and weighted sums of parameters trained in place."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medgraft.adapter import (
    LoadedAdapter,
    Manifest,
    TrainedOn,
    adapter_bytes,
    finish_package,
    load_adapter,
    locate_adapter,
    save_weights,
)
from medgraft.backbones import Backbone
from medgraft.conversion.derived import applied, derived, manifest_of
from medgraft.conversion.new_folder import new_folder
from medgraft.errors import AdapterError, ConfigError, suggestion
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import add_peft, bare_name, dequantize

METHODS = (
    "cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
_UNCOMBINED = ("use_dora", "modules_to_save", "lora_bias", "target_parameters")  # options of LoRA
_PRUNING = ("ties", "dare", "magnitude_prune")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CombineOptions:
    """PEFT's method, None for the exact sum (`cat` for LoRA); `density`: the share of values that pruning methods keep."""

    method: str | None = None
    density: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Combined:
    """A combined package: its method, its LoRA rank (None without LoRA), and its size."""

    folder: str
    method: str
    rank: int | None
    bytes: int


def combine_adapters(
    sources: Sequence[Path],
    weights: Sequence[float],
    out: Path,
    *,
    plugins: PluginManager,
    backbone: str | None = None,
    options: CombineOptions = CombineOptions(),
) -> Combined:
    """Combine adapters of one base into the new folder `out`: the sum of each one's change times its weight.

    PEFT's methods other than `cat` and `svd` are no exact sums. AdapterError for adapters of different bases or kinds.
    """
    if len(sources) < 2 or len(weights) != len(sources):
        raise ConfigError(f"{len(sources)} adapters have {len(weights)} weights. Name two or more, with a weight for each.")
    if options.method is not None and options.method not in METHODS:
        found = suggestion(options.method, METHODS)
        raise ConfigError(f"Unknown method {options.method!r}.{found} Known: {', '.join(METHODS)}.")
    folders = [locate_adapter(source) for source in sources]
    folders = [locate_adapter(source) for source in sources]
    with new_folder(out) as folder:
        several = [load_adapter(f, plugins=plugins, backbone=backbone, plain=True, dequantized=True) for f in folders]
        manifests = [manifest_of(loaded, backbone) for loaded in several]
        _check_same(folders, manifests)
        kind = _kind(several, folders)
        if kind is None and options.method not in (None, "linear"):
            raise AdapterError(f"Method {options.method!r} is for LoRA; what was trained in place is combined by linear alone.")
        method = options.method or ("cat" if kind else "linear")
        base = load_model(backbone or manifests[0].backbone, manifests[0].strategy_settings, plugins=plugins)
        dequantize(base.model)
        own = dict(base.model.named_parameters())
        sums = _sums(own, several, weights)
        for name, tensor in sums.items():
            own[name].data = tensor
        changed = [own[name] for name in sums]
        model = _combined_lora(base, several, weights, method, options) if kind else base.model
        names = {id(parameter): name for name, parameter in base.model.named_parameters()}  # PEFT moves those of its layers
        direct = tuple(names[id(parameter)] for parameter in changed)
        settings, rank = manifests[0].strategy_settings, None
        if kind:
            rank = next(iter(model.peft_config.values())).r
            settings = settings.model_copy(update={"options": {**settings.options, "r": rank, "lora_alpha": rank}})
        files = save_weights(folder, applied(settings, model, direct), dict.fromkeys(direct, ""))
        known = [loaded.trained_on for loaded in several if loaded.trained_on is not None]
        if len(known) == len(several):
            files = (*files, functools.reduce(TrainedOn.union, known).write(folder))
        else:
            _logger.warning("The result does not list its training images, because not all of the adapters do.")
        training = _training(folders, manifests, weights, method) | {"in_place": len(direct)}
        added = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
        training["trainable_parameters"] = added + sum(parameter.numel() for parameter in changed)
        manifest = finish_package(folder, derived(manifests[0], "combined", settings, training), files)
    return Combined(str(out), method, rank, adapter_bytes(manifest))


def _check_same(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """AdapterError unless all have the same base; warns if their prompts differ."""
    first = manifests[0]
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.base_fingerprint != first.base_fingerprint:
            raise AdapterError(
                f"{folder} is for base {manifest.base_fingerprint[:12]}, but {folders[0]} for {first.base_fingerprint[:12]}. "
                "Only adapters of one base can be combined."
            )
        if manifest.strategy_settings.quantization != first.strategy_settings.quantization:
            raise AdapterError(f"{folder} and {folders[0]} were trained on bases of different quantisation.")
        if manifest.prompt != first.prompt:
            _logger.warning("%s has the prompt %r; the result has %r.", folder, manifest.prompt, first.prompt)


def _kind(several: Sequence[LoadedAdapter], folders: Sequence[Path]) -> str | None:
    """LORA, or None if everything was trained in place; AdapterError for other methods, and for mixtures."""
    kinds = []
    for loaded, folder in zip(several, folders, strict=True):
        model: Any = loaded.model
        config = next(iter(model.peft_config.values())) if hasattr(model, "peft_config") else None
        kinds.append(config.peft_type.value if config else None)
        if config and kinds[-1] != "LORA":
            raise AdapterError(f"{folder} is {kinds[-1]}; only LoRA and what was trained in place can be combined.")
        odd = [name for name in _UNCOMBINED if getattr(config, name, None)]
        if config and (odd or config.bias != "none"):
            raise AdapterError(f"{folder} is a LoRA with {odd[0] if odd else 'bias'}, which PEFT does not combine.")
    if len(set(kinds)) > 1:
        shown = ", ".join(f"{f.name}: {kind or 'trained in place'}" for f, kind in zip(folders, kinds, strict=True))
        raise AdapterError(f"Adapters of different kinds cannot be combined ({shown}). Extract a LoRA of each first.")
    return kinds[0]


@torch.no_grad()
def _sums(
    base: Mapping[str, torch.Tensor], several: Sequence[LoadedAdapter], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """Base plus the weighted changes, of each parameter of the base that any of the adapters changed."""
    trained = [
        {name.replace(".base_layer.", "."): parameter for name, parameter in loaded.backbone.model.named_parameters()}
        for loaded in several
    ]
    sums = {}
    for name, parameter in base.items():
        if any(not torch.equal(own[name], parameter) for own in trained):
            changes = [weight * (own[name] - parameter) for own, weight in zip(trained, weights, strict=True)]
            sums[name] = parameter + sum(changes)
    return sums


def _combined_lora(
    base: Backbone, several: Sequence[LoadedAdapter], weights: Sequence[float], method: str, options: CombineOptions
) -> Any:
    """The model of `base` with PEFT's combination of the adapters."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    model: Any = several[0].model
    names = [f"adapter_{place}" for place in range(len(several))]
    for name, loaded in zip(names, several, strict=True):
        theirs: Any = loaded.model
        target = {bare_name(module) for module in theirs.base_model.targeted_module_names}
        # alike in everything but rank and modules, and without the scale of rsLoRA, which the result would multiply in again
        config = replace(next(iter(theirs.peft_config.values())), target_modules=target, init_lora_weights=True)
        state = get_peft_model_state_dict(theirs, adapter_name=theirs.active_adapter, save_embedding_layers=False)
        with torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out")
            model.add_adapter(name, config)
        set_peft_model_state_dict(model, state, adapter_name=name)
    model.peft_config[names[0]].use_rslora = False
    pruning = {"density": options.density} if method.startswith(_PRUNING) else {}
    try:
        with torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out")
            torch.manual_seed(options.seed)
            model.add_weighted_adapter(names, list(weights), "combined", method, svd_full_matrices=False, **pruning)
    except (ValueError, TypeError, RuntimeError) as error:
        raise AdapterError(f"PEFT cannot combine these adapters by {method}: {str(error).splitlines()[0]}") from error
    state = get_peft_model_state_dict(model, adapter_name="combined", save_embedding_layers=False)
    combined = add_peft(base.model, model.peft_config["combined"], base.source)
    set_peft_model_state_dict(combined, state)
    return combined


def _training(folders: Sequence[Path], manifests: Sequence[Manifest], weights: Sequence[float], method: str) -> dict[str, Any]:
    """What the manifest says of the sources; steps, seconds and images are sums."""
    sources = [
        {
            "name": folder.name, "weight": weight, "strategy": manifest.strategy, "data": manifest.data,
            "files": {name: entry.sha256 for name, entry in manifest.files.items()},
        }
        for folder, weight, manifest in zip(folders, weights, manifests, strict=True)
    ]  # fmt: skip
    shown = ", ".join(f"{weight:g} x {folder.name}" for folder, weight in zip(folders, weights, strict=True))
    totals = {key: sum(manifest.training[key] for manifest in manifests) for key in ("steps", "seconds", "images")}
    note = f"- Combined by {method} of {shown}; steps, seconds and images are sums, the other figures the first's.\n"
    return {**totals, "note": note, "combined": {"method": method, "sources": sources}}
