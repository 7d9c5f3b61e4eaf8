"""Spreads a model over GPUs, CPU and disk by accelerate's hooks, so that it can still be computed part by part."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module, remove_hook_from_submodules
from accelerate.utils import find_tied_parameters, get_balanced_memory, get_max_memory, set_module_tensor_to_device
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from medgraft import hardware
from medgraft.backbones import Backbone
from medgraft.errors import BackboneError, ConfigError, StrategyError, first_line, suggestion
from medgraft.model_config import ModelConfig
from medgraft.quiet import without_warnings
from medgraft.strategies import bare_name, quantized_modules, reads_once

_logger = logging.getLogger(__name__)
_OFFLOADED = ("cpu", "disk")


def check_devices(config: ModelConfig) -> None:
    """ConfigError if a device map cannot be used by this process, or names a device that is not here."""
    if not config.spreads:
        return
    if hardware.process_count() > 1:
        raise ConfigError(
            "model.device_map spreads a model over the GPUs of one process, and there are several processes here. Leave it "
            "out, or start one process."
        )
    named = config.device_map.values() if isinstance(config.device_map, dict) else config.max_memory or ()
    gpus = torch.cuda.device_count() if hardware.device().type == "cuda" else 0
    known = [*range(gpus), *(f"cuda:{number}" for number in range(gpus)), *_OFFLOADED]
    if odd := [device for device in named if device not in known]:
        raise ConfigError(f"model.device_map: there is no device {odd[0]!r} here. Known: {', '.join(map(str, known))}.")


def refuse_map(config: ModelConfig) -> None:
    """BackboneError if a device map is given for a model behind an API."""
    if config.spreads:
        raise BackboneError("model.device_map is for models that are loaded here, and this one is behind an API. Leave it out.")


def spread(backbone: Backbone, *, trains: bool) -> None:
    """Move the weights of a loaded `backbone` to where its `placement` says; without one, to this process's device.

    Call it last: after adapters and kernels. With `trains` adapters stay on the device that computes; StrategyError if weights
    that are trained in place, or that an adapter reads by itself, would be offloaded. Otherwise the model is frozen.
    """
    if not backbone.placement.spreads:
        backbone.to_device()
        return
    model, main = backbone.model.eval(), hardware.device()
    if not trains:
        model.requires_grad_(False)
    units = dict.fromkeys(_units(model))
    places = _places(model, units, backbone.placement, main)
    offloaded = {unit: place for unit, place in places.items() if place == "disk" or (place == "cpu" and main.type != "cpu")}
    _check_offloaded(model, offloaded)
    trained = {
        name: dict(module._parameters)
        for name, module in model.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    }
    remove_hook_from_submodules(model)  # those of transformers, which kernels and adapters came after
    if set(places.values()) == {"cpu"} and main.type == "cpu":
        return
    folder = _folder_beside(model, backbone.placement.offload_folder) if "disk" in places.values() else None
    skipped = getattr(model, "_skip_keys_device_placement", None)
    with warnings.catch_warnings(), without_warnings("accelerate.big_modeling"):
        warnings.filterwarnings("ignore", message="The following device_map keys do not match")  # parameters beside modules
        dispatch_model(model, places, main_device=main, offload_dir=folder, skip_keys=skipped, force_hooks=True)
    _keep(model, trained, main)
    _return_to_inputs(model, main, skipped)
    _logger.info("%s", _summary(places))


def _folder_beside(model: nn.Module, parent: str | None) -> str:
    """A new folder for a model's weights, which is removed with it; ConfigError if it cannot be made in `parent`."""
    try:
        folder = tempfile.mkdtemp(dir=parent, prefix="medgraft-offload-")
    except OSError as error:
        raise ConfigError(f"model.offload_folder: {first_line(error)}") from None
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _units(model: nn.Module, name: str = "") -> Iterator[str]:
    """Names of the modules that are not split, which are layers and modules without layers, and of parameters beside them."""
    prefix = f"{name}." if name else ""
    if not _has_layers(model):
        if any(True for _ in model.parameters()) or any(True for _ in model.buffers()):
            yield name
        return
    for child, module in model.named_children():
        if isinstance(model, nn.ModuleList):
            yield prefix + child
        else:
            yield from _units(module, prefix + child)
    yield from (prefix + own for own, _ in model.named_parameters(recurse=False))
    yield from (prefix + own for own, _ in model.named_buffers(recurse=False))


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(inside, nn.ModuleList) and len(inside) for inside in module.modules())


def _places(model: nn.Module, units: Mapping[str, None], config: ModelConfig, main: torch.device) -> dict[str, str]:
    """The device of each unit; parameters beside modules are on the device that computes, and tied weights are together."""
    wanted = config.device_map if isinstance(config.device_map, dict) else _inferred(model, units, config, main)
    names = {name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())}
    if unknown := [name for name in wanted if name not in names]:
        raise ConfigError(
            f"model.device_map: the model has no module {unknown[0]!r}.{suggestion(unknown[0], names)} "
            f"Its first ones are {', '.join(name for name, _ in model.named_children())}."
        )
    modules = {name for name, _ in model.named_modules()}
    found: dict[str, str] = {}
    for unit in units:
        if unit not in modules:
            found[unit] = str(main)
            continue
        inside = [place for name, place in wanted.items() if name.startswith(f"{unit}.")]
        above = [name for name in wanted if unit == name or name == "" or unit.startswith(f"{name}.")]
        if len(set(inside)) > 1:
            raise ConfigError(f"model.device_map splits {unit!r}, which is computed as a whole. Name it with one device.")
        if not above and not inside:
            raise ConfigError(f'model.device_map says nothing of {unit!r}. Add it, or "" for all that is not named.')
        place = wanted[max(above, key=len)] if above else inside[0]
        found[unit] = _named(place, main)
    for group in find_tied_parameters(model):
        tied = [unit for unit in units if any(name == unit or name.startswith(f"{unit}.") for name in group)]
        found |= dict.fromkeys(tied, found[tied[0]]) if tied else {}
    return found


def _named(place: Any, main: torch.device) -> str:
    """`cuda:0` for 0."""
    return f"{main.type}:{place}" if isinstance(place, int) else str(place)


def _inferred(model: nn.Module, units: Mapping[str, None], config: ModelConfig, main: torch.device) -> Mapping[str, Any]:
    """The map that accelerate finds for a `device_map` that is a name."""
    if quantized_modules(model) and main.type != "cpu":
        return dict(getattr(model, "hf_device_map", {"": main}))  # by transformers, as quantised weights were loaded there
    modules = dict(model.named_modules())
    whole = sorted({type(modules[unit]).__name__ for unit in units if unit in modules})
    memory: Any = config.max_memory
    if memory is None and main.type == "cpu":
        memory = {"cpu": psutil.virtual_memory().total}  # of which the model has its part already
    try:
        limits = get_max_memory(memory and dict(memory))
        if config.device_map != "sequential":
            low = config.device_map == "balanced_low_0"
            limits = get_balanced_memory(model, limits if memory else None, no_split_module_classes=whole, low_zero=low)
        found: Mapping[str, Any] = infer_auto_device_map(model, limits, no_split_module_classes=whole)
    except ValueError as error:
        raise ConfigError(f"model.device_map={config.device_map}: {first_line(error)}") from None
    return found


def _check_offloaded(model: nn.Module, offloaded: Mapping[str, Any]) -> None:
    """Raise an error if what `offloaded` puts away could not be computed with, or not be trained."""

    def unit_of(name: str) -> str | None:
        return next((unit for unit in offloaded if name == unit or name.startswith(f"{unit}.")), None)

    for name in quantized_modules(model):
        if (unit := unit_of(name)) is not None:
            place, bare = offloaded[unit], bare_name(name).removesuffix(".base_layer")
            raise BackboneError(
                f"model.device_map puts {bare}, which is quantised, on {place}; bitsandbytes computes only with what is on a "
                "GPU. Put it there, or leave the quantisation out."
            )
    for name, module in model.named_modules():
        if (unit := unit_of(name)) is None:
            continue
        place, bare = offloaded[unit], bare_name(name)
        if isinstance(module, BaseTunerLayer) and not reads_once(module):
            raise StrategyError(
                f"{type(module).__name__} reads the weights of {bare}, which model.device_map puts on {place}. Put them on a "
                "GPU, or use a strategy with plain LoRA, such as lora."
            )
        own = [own for own, parameter in module.named_parameters(recurse=False) if parameter.requires_grad]
        if own and not _of_adapter(model, name):
            raise StrategyError(
                f"The strategy trains {bare}.{own[0]} in place, which model.device_map puts on {place}. Put it on a GPU, "
                "freeze its part, or use an adapter, such as lora."
            )


def _of_adapter(model: nn.Module, name: str) -> bool:
    """Whether the module `name` was added by PEFT beside a `base_layer`."""
    above = name.split(".")
    for depth in range(1, len(above)):
        layer = model.get_submodule(".".join(above[:depth]))
        if isinstance(layer, BaseTunerLayer):
            return above[depth] != "base_layer"
    return False


def _keep(model: nn.Module, trained: Mapping[str, Mapping[str, Any]], main: torch.device) -> None:
    """Give offloaded modules with `trained` parameters these back, on the device that computes."""
    for name, parameters in trained.items():
        module = model.get_submodule(name)
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            remove_hook_from_module(module)
            for own, parameter in ((own, found) for own, found in parameters.items() if found is not None):
                parameter.data = parameter.data.to(main)
                module._parameters[own] = parameter


def _return_to_inputs(model: nn.Module, main: torch.device, skipped: Any) -> None:
    """Let modules outside of layers give their outputs on the device that their inputs are on.

    So whoever computes with several parts has everything on one device, while states pass from layer to layer without it.
    """
    layers = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.ModuleDict) or name.startswith(tuple(layers)):
            continue
        hook = getattr(module, "_hf_hook", None)
        if hook is None and any(True for _ in module.parameters()):
            add_hook_to_module(module, AlignDevicesHook(main, io_same_device=True, skip_keys=skipped))
        elif hook is not None:
            hook.io_same_device = True
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        owner, _, own = name.rpartition(".")
        if _has_layers(model.get_submodule(owner)) and tensor.device != main:
            set_module_tensor_to_device(model.get_submodule(owner), own, main)


def _summary(places: Mapping[str, Any]) -> str:
    counts: dict[str, int] = {}
    for place in places.values():
        counts[str(place)] = counts.get(str(place), 0) + 1
    return "device map: " + ", ".join(f"{count} modules on {place}" for place, count in counts.items())
