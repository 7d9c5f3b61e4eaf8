"""Load a backbone or an adapter for use, with the prompt, the precision and the place that are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medgraft import adapter as adapters
from medgraft import hardware
from medgraft.adapter import LoadedAdapter
from medgraft.backbones import AnyBackbone, Backbone
from medgraft.config import GenerationConfig
from medgraft.errors import ConfigError
from medgraft.inference import Captioner, captioner_for
from medgraft.model_config import DeviceMap, ModelConfig
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_captioner
from medgraft.strategies import Quantization, Strategy
from medgraft.strict_model import validated
from medgraft.train_config import Dtype


def load_backbone(
    name: str,
    *,
    quantization: Quantization = "none",
    dtype: Dtype | None = None,
    prompt: str | None = None,
    image_size: int | None = None,
    device_map: DeviceMap | ModelConfig | None = None,
    plugins: PluginManager | None = None,
) -> AnyBackbone:
    """The backbone `NAME` or `NAME:SOURCE` (hub id or folder), its weights quantised as `quantization` says.

    With a `dtype` it is for captioning alone: it is frozen, computes in `dtype` and is held in it; `auto` is what the hardware
    is fastest in. Without one its weights are in fp32 and can be trained. `prompt` takes the place of its default prompt,
    `image_size` of the side in pixels of its images. `device_map` spreads it over GPUs, CPU and disk, frozen; a ModelConfig
    limits their memory too. For a model behind an API this returns its client.
    """
    manager = plugins or PluginManager.from_environment()
    strategy = Strategy(quantization=quantization)
    computes_in = None if dtype is None else hardware.compute_dtype(dtype)
    placement = placement_of(device_map)
    backbone = prepare_captioner(name, strategy, plugins=manager, dtype=computes_in, image_size=image_size, placement=placement)
    if prompt is not None:
        backbone.default_prompt = prompt  # type: ignore[misc]
    return backbone


def load_adapter(
    folder: str | Path,
    *,
    backbone: str | None = None,
    allow_base_mismatch: bool = False,
    quantization: Quantization = "none",
    dtype: Dtype | None = None,
    prompt: str | None = None,
    device_map: DeviceMap | ModelConfig | None = None,
) -> LoadedAdapter:
    """The adapter in `folder`, or `USER/REPO[@REVISION]` on the hub, on its base, which `backbone` (`NAME:SOURCE`) locates.

    Another base is refused; with `allow_base_mismatch` it is used, with a warning that says what differs. `quantization` holds
    the base of a plain PEFT adapter in 4 or 8 bits. It computes in `dtype`; `auto` is that of its training where this machine
    has it. Without one a plain PEFT adapter's base has its weights in fp32. `prompt` takes the place of the training's.
    `device_map` is as in `load_backbone`.
    """
    loaded = adapters.load_adapter(
        folder, plugins=PluginManager.from_environment(), backbone=backbone, allow_base_mismatch=allow_base_mismatch,
        options=adapters.BaseOptions(quantization, dtype, placement_of(device_map)),
    )  # fmt: skip
    return replace(loaded, given_prompt=prompt)


def placement_of(device_map: DeviceMap | ModelConfig | None) -> ModelConfig:
    """A ModelConfig with this `device_map`; one that is given is returned as it is."""
    return device_map if isinstance(device_map, ModelConfig) else validated(ModelConfig, {"device_map": device_map}, "model")


def loaded_adapter(
    adapter: LoadedAdapter | str | Path | None, backbone: AnyBackbone | str | None, plugins: PluginManager | None
) -> LoadedAdapter | None:
    """The adapter that is given or whose folder is given, on a `backbone` that is given by name; None if there is none."""
    if not isinstance(adapter, str | Path):
        return adapter
    located = backbone if isinstance(backbone, str) else None
    return adapters.load_adapter(adapter, plugins=plugins or PluginManager.from_environment(), backbone=located)


def captioner_of(
    adapter: LoadedAdapter | str | Path | None, backbone: AnyBackbone | str | None, plugins: PluginManager | None
) -> tuple[Captioner, GenerationConfig]:
    """The model ready for use, and the generation settings that it was trained with."""
    adapter = loaded_adapter(adapter, backbone, plugins)
    if adapter is None and backbone is None:
        raise ConfigError("Name an adapter or a backbone.")
    if adapter is None and isinstance(backbone, str):
        backbone = load_backbone(backbone, dtype="auto", plugins=plugins)
    if adapter is not None:
        return captioner_for(adapter.backbone, prompt=adapter.prompt, dtype=adapter.dtype), adapter.generation
    assert backbone is not None and not isinstance(backbone, str)
    dtype = backbone.computes_in if isinstance(backbone, Backbone) else None
    return captioner_for(backbone, prompt=None, dtype=dtype or hardware.compute_dtype()), GenerationConfig()
