"""Several adapters of one base as one: PEFT's weighted combinations, and weighted sums of parameters trained in place."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import JsonValue

from medgraft.adapter import (
    LoadedAdapter,
    Manifest,
    TrainedOn,
    adapter_bytes,
    load_adapter,
    read_contents,
    save_weights,
    write_package,
)
from medgraft.adapter.lineage import ancestor
from medgraft.adapter.manifest import Ancestor, Conversion
from medgraft.backbones import Backbone
from medgraft.conversion.derived import applied, derived, manifest_of
from medgraft.conversion.new_folder import check_new
from medgraft.errors import AdapterError, ConfigError, first_line, suggestion
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, bare_name, dequantize, logged_warnings

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
    sources: Sequence[str | Path],
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
        near = suggestion(options.method, METHODS)
        raise ConfigError(f"Unknown method {options.method!r}.{near} Known: {', '.join(METHODS)}.")
    check_new(out)
    found = [read_contents(source) for source in sources]
    folders = [contents.folder for contents in found]
    several = [load_adapter(f, plugins=plugins, backbone=backbone, plain="dequantized") for f in folders]
    manifests = [manifest_of(loaded) for loaded in several]
    _check_same(folders, manifests)
    kind = _kind(several, folders)
    if kind is None and options.method not in (None, "linear"):
        raise AdapterError(f"Method {options.method!r} is for LoRA; what was trained in place is combined by linear alone.")
    method = options.method or ("cat" if kind else "linear")
    base = load_model(several[0].base, manifests[0].strategy_settings, plugins=plugins)
    dequantize(base.model)
    changed = _add_sums(base, several, weights)
    if not kind and not changed:
        raise AdapterError("None of the adapters changes the base, so there is nothing to combine.")
    model = _combined_lora(base, several, weights, method, options) if kind else base.model
    names = {id(parameter): name for name, parameter in base.model.named_parameters()}  # PEFT moves those of its layers
    direct = tuple(names[id(parameter)] for parameter in changed)
    rank = model.active_peft_config.r if kind else None
    settings = _settings(manifests, rank)
    added = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    training = {
        "parts": manifests[0].training["parts"], "model_class": base.model_class, "in_place": len(direct),
        "trainable_parameters": added + sum(parameter.numel() for parameter in changed),
    }  # fmt: skip
    conversion = Conversion(
        action="combine", settings=_described(weights, method, options), sources=tuple(map(ancestor, found))
    )
    trained_on = _trained_on(several)

    def write_files(folder: Path) -> Iterable[str]:
        files = save_weights(folder, applied(settings, model, direct), dict.fromkeys(direct, ""))
        return (*files, trained_on.write(folder)) if trained_on else files

    manifest = derived(_common(manifests), conversion, settings, training)
    return Combined(str(out), method, rank, adapter_bytes(write_package(out, manifest, write_files)))


def _settings(manifests: Sequence[Manifest], rank: int | None) -> Strategy:
    """The first adapter's strategy with the parts that any of them trains; the LoRA has `rank`, and scale 1."""
    first, *others = [manifest.strategy_settings for manifest in manifests]
    plans: dict[str, Any] = {str(part): plan for part, plan in first.plans.items()}
    for strategy in others:
        plans |= {part: plan for part, plan in strategy.plans.items() if plans[part].mode == "frozen"}
    options = first.options | ({"r": rank, "lora_alpha": rank} if rank else {})
    return first.model_copy(update={**plans, "options": options})


def _described(weights: Sequence[float], method: str, options: CombineOptions) -> dict[str, JsonValue]:
    """The settings that this method has."""
    settings: dict[str, JsonValue] = {"method": method, "weights": list(weights)}
    settings |= {"density": options.density} if method.startswith(_PRUNING) else {}
    return settings | ({"seed": options.seed} if method.startswith("dare") else {})


def _common(manifests: Sequence[Manifest]) -> Manifest:
    """The first manifest, with the data and the ancestors of all."""
    first = manifests[0]
    data = [manifest.data for manifest in manifests]
    together = {"name": " and ".join(dict.fromkeys(each["name"] for each in data))}
    lineage: list[Ancestor] = []
    for manifest in manifests:
        lineage += [each for each in manifest.lineage if each not in lineage]
    return first.model_copy(
        update={
            "data": data[0] if all(each == data[0] for each in data) else together,
            "lineage": tuple(lineage),
            "max_text_tokens": max(manifest.max_text_tokens for manifest in manifests),
        }
    )


def _trained_on(several: Sequence[LoadedAdapter]) -> TrainedOn | None:
    """What all of them were trained on; None if none of them lists it."""
    known = [loaded.trained_on for loaded in several if loaded.trained_on is not None]
    if len(known) < len(several):
        _logger.warning("The result does not list all of its training images, because not all of the adapters do.")
    if not known:
        return None
    joined = functools.reduce(lambda earlier, own: own.after(earlier), known)
    return joined if len(known) == len(several) else joined.after(None)


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
        if manifest.image_size != first.image_size:
            sizes = [f"{m.image_size} pixels" if m.image_size else "the base's size" for m in (manifest, first)]
            raise AdapterError(f"{folder} was trained on images of {sizes[0]}, but {folders[0]} of {sizes[1]}.")
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
def _add_sums(base: Backbone, several: Sequence[LoadedAdapter], weights: Sequence[float]) -> list[torch.nn.Parameter]:
    """Add the weighted changes to the parameters of the base that any of the adapters changed; returns those parameters."""
    trained = [
        {name.replace(".base_layer.", "."): parameter for name, parameter in loaded.backbone.model.named_parameters()}
        for loaded in several
    ]
    changed = []
    for name, parameter in base.model.named_parameters():
        if any(not torch.equal(own[name], parameter) for own in trained):
            parameter += sum(weight * (own[name] - parameter) for own, weight in zip(trained, weights, strict=True))
            changed.append(parameter)
    return changed


def _combined_lora(
    base: Backbone, several: Sequence[LoadedAdapter], weights: Sequence[float], method: str, options: CombineOptions
) -> Any:
    """The model of `base` with PEFT's combination of the adapters."""
    model: Any = several[0].model
    names = [f"adapter_{place}" for place in range(len(several))]
    for name, loaded in zip(names, several, strict=True):
        theirs: Any = loaded.model
        target = {bare_name(module) for module in theirs.base_model.targeted_module_names}
        # alike in everything but rank and modules, and without the scale of rsLoRA, which the result would multiply in again
        config = replace(next(iter(theirs.peft_config.values())), target_modules=target, init_lora_weights=True)
        state = get_peft_model_state_dict(theirs, adapter_name=theirs.active_adapter, save_embedding_layers=False)
        with torch.random.fork_rng([]), logged_warnings():
            model.add_adapter(name, config)
        set_peft_model_state_dict(model, state, adapter_name=name)
    model.peft_config[names[0]].use_rslora = False
    pruning = {"density": options.density} if method.startswith(_PRUNING) else {}
    try:
        with torch.random.fork_rng([]), logged_warnings():
            torch.manual_seed(options.seed)
            model.add_weighted_adapter(names, list(weights), "combined", method, svd_full_matrices=False, **pruning)
    except (ValueError, TypeError, RuntimeError) as error:
        raise AdapterError(f"PEFT cannot combine these adapters by {method}: {first_line(error)}") from error
    state = get_peft_model_state_dict(model, adapter_name="combined", save_embedding_layers=False)
    with torch.random.fork_rng([]), logged_warnings():
        combined = get_peft_model(base.model, model.peft_config["combined"])
    set_peft_model_state_dict(combined, state)
    return combined
