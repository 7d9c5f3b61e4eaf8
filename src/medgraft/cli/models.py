"""Models and generation settings from parsed options."""

from __future__ import annotations

import argparse

from medgraft import loading
from medgraft.adapter import LoadedAdapter
from medgraft.adapter_set import load_adapters
from medgraft.backbones import AnyBackbone
from medgraft.cli.options import model_settings
from medgraft.config import GenerationConfig, parse_overrides
from medgraft.errors import ConfigError
from medgraft.image_config import ImageConfig
from medgraft.inference import Captioner
from medgraft.model_config import ModelConfig
from medgraft.quiet import quiet_libraries
from medgraft.strict_model import validated

_BASE = "base model"
_SECTIONS = ("model", "image", "generation")


def load_model(
    arguments: argparse.Namespace, sections: tuple[str, ...] = _SECTIONS
) -> tuple[LoadedAdapter | None, AnyBackbone | None]:
    """The model that the options of `add_model` name; `sections` are those that --set takes."""
    quiet_libraries()
    changes = {"quantization": arguments.quantization, "prompt": arguments.prompt, "dtype": arguments.dtype or "auto"}
    size, placement = image_size(arguments, sections), placement_of(arguments, sections)
    if arguments.adapter is not None:
        allow = arguments.allow_base_mismatch
        loaded = loading.load_adapter(
            arguments.adapter, backbone=arguments.backbone, allow_base_mismatch=allow, device_map=placement, **changes
        )
        return loaded, None
    if arguments.backbone is None:
        raise ConfigError("Name the model: --adapter DIR or --backbone NAME[:SOURCE].")
    return None, loading.load_backbone(arguments.backbone, image_size=size, device_map=placement, **changes)


def placement_of(arguments: argparse.Namespace, sections: tuple[str, ...] = _SECTIONS) -> ModelConfig:
    """Where --device-map and --set say that the weights lie; `sections` are those that --set takes."""
    changes = parse_overrides([*arguments.overrides, *model_settings(arguments)], sections).get("model", {})
    return validated(ModelConfig, changes, "model")


def captioners(arguments: argparse.Namespace) -> dict[str, tuple[Captioner, GenerationConfig]]:
    """The models that the options of `add_models` name, each with its generation settings.

    Several are named by their adapters and share their base; the name of a single one is empty.
    """
    names = [str(adapter) for adapter in arguments.adapter or []]
    if len(names) < 2 and not arguments.with_base:
        arguments.adapter = names[0] if names else None
        adapter, backbone = load_model(arguments)
        return {"": (loading.captioner_of(adapter, backbone, None)[0], generation(arguments, adapter))}
    if not names:
        raise ConfigError("--with-base shows the base of adapters; name one with --adapter DIR.")
    for name in names:
        if [*names, _BASE].count(name) > 1:
            raise ConfigError(f"--adapter {name}: two models would have this name. Name each adapter once, or write ./{name}.")
    image_size(arguments)  # refuses one
    if placement_of(arguments).spreads:
        raise ConfigError(
            "--device-map is for one model: several share one base on one device. Name one adapter, or leave it out."
        )
    quiet_libraries()
    several = load_adapters(
        {name: name for name in names}, backbone=arguments.backbone, allow_base_mismatch=arguments.allow_base_mismatch,
        quantization=arguments.quantization, dtype=arguments.dtype or "auto", prompt=arguments.prompt,
    )  # fmt: skip
    chosen = {name: several.use(name) for name in names} | ({_BASE: several.use(None)} if arguments.with_base else {})
    return {name: (loading.captioner_of(each, None, None)[0], generation(arguments, each)) for name, each in chosen.items()}


def image_size(arguments: argparse.Namespace, sections: tuple[str, ...] = _SECTIONS) -> int | None:
    """The size of images that --set asks for; ConfigError with --adapter. `sections` are those that --set takes."""
    size = validated(ImageConfig, parse_overrides(arguments.overrides, sections).get("image", {}), "image").size
    if size is not None and arguments.adapter:
        raise ConfigError(f"image.size={size} is for a bare backbone: an adapter has the size that it was trained with.")
    return size


def generation(
    arguments: argparse.Namespace, adapter: LoadedAdapter | None, sections: tuple[str, ...] = _SECTIONS
) -> GenerationConfig:
    """The adapter's generation settings, overridden by --set and then by the options; `sections` are those that --set takes."""
    given = {"num_beams": arguments.num_beams, "max_new_tokens": arguments.max_new_tokens}
    changes = parse_overrides(arguments.overrides, sections).get("generation", {})
    changes |= {name: value for name, value in given.items() if value is not None}
    return (adapter.generation if adapter else GenerationConfig()).overridden(changes)
