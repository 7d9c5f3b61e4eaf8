"""Images of another size than the checkpoint's own: which sizes fit, and the configuration for one."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig

from medgraft.backbones.base import Backbone
from medgraft.backbones.remote import RemoteCaptioner
from medgraft.errors import BackboneError
from medgraft.plugin import PluginManager


def config_for_size(
    captioner: type[Backbone], config: PreTrainedConfig, size: int | None, *, plugins: PluginManager
) -> PreTrainedConfig:
    """`config` for images of `size` pixels a side, as `Backbone.tokens` reads it; `config` itself for None.

    BackboneError if the model takes images of one size alone, or if `size` is no multiple of its patches.
    """
    if size is None:
        return config
    step = captioner.image_step(config)
    if step is None:
        raise _one_size(f"{captioner.__name__} takes images of one size", plugins)
    if size % step:
        below, above = size // step * step, (size // step + 1) * step
        nearest = f"{below} and {above}" if below else f"{above} and {above + step}"
        raise BackboneError(f"image.size={size} is no multiple of {step} pixels, as {captioner.__name__} needs: try {nearest}.")
    changed: Any = copy.deepcopy(config)
    vision = getattr(changed, "vision_config", None) or changed.encoder
    vision.image_size = size
    return changed


def refuse_size(captioner: type[RemoteCaptioner], size: int | None, *, plugins: PluginManager) -> None:
    """BackboneError for `size` of a model behind an API, which takes images as they are."""
    if size is not None:
        raise _one_size(f"{captioner.__name__} is behind an API, which takes images as they are", plugins)


def _one_size(why: str, plugins: PluginManager) -> BackboneError:
    kinds = {spec.name: spec.resolve() for spec, _ in plugins.specs("backbone")}
    have = [name for name, kind in kinds.items() if issubclass(kind, Backbone) and kind.has_image_sizes()]
    return BackboneError(f"{why}: leave image.size out. Backbones that have it: {', '.join(have)}.")
