"""Look up a backbone class and its source from `NAME:SOURCE`."""

from __future__ import annotations

from pathlib import Path

from medgraft.backbones.base import Backbone
from medgraft.backbones.image_size import config_for_size
from medgraft.backbones.loading import read_config
from medgraft.backbones.remote import RemoteCaptioner
from medgraft.errors import ConfigError, PluginError, StrategyError
from medgraft.plugin import PluginManager

AnyBackbone = Backbone | RemoteCaptioner
"""A loaded local model, or the client of a model behind an API."""


def split_name(text: str) -> tuple[str, str | None]:
    """Split `NAME:SOURCE` into (name, source); the source, a hub id or folder, is None if not given."""
    name, _, source = text.partition(":")
    return name, source or None


def get_captioner(text: str, *, plugins: PluginManager) -> tuple[type[Backbone] | type[RemoteCaptioner], str]:
    """The class and the source for `NAME` or `NAME:SOURCE`; the class's default source if none is given."""
    name, source = split_name(text)
    captioner = plugins.get("backbone", name)
    if not (isinstance(captioner, type) and issubclass(captioner, Backbone | RemoteCaptioner)):
        raise PluginError(f"Backbone {name!r} is {captioner!r}, not a subclass of medgraft.plugin_api.Backbone.")
    source = source or captioner.default_source
    if source is None:
        raise ConfigError(f"Backbone {name!r} needs weights: write {name}:HUB_ID or {name}:FOLDER.")
    source = str(Path(source).expanduser()) if source.startswith("~") else source
    return captioner.for_source(source) if issubclass(captioner, Backbone) else captioner, source


def prompt_for(captioner: AnyBackbone | type[RemoteCaptioner], wanted: str | None) -> str:
    """`wanted`, or the model's default prompt if that is None."""
    return captioner.default_prompt if wanted is None else wanted


def get_backbone(text: str, *, plugins: PluginManager) -> tuple[type[Backbone], str]:
    """As get_captioner, but StrategyError for models behind an API, which cannot be trained."""
    captioner, source = get_captioner(text, plugins=plugins)
    if issubclass(captioner, RemoteCaptioner):
        raise StrategyError(f"{text} is behind an API and cannot be trained here; its only strategy is zero-shot.")
    return captioner, source


def load_without_weights(text: str, *, plugins: PluginManager, image_size: int | None = None) -> Backbone:
    """The tokenizer and the image processor of `NAME:SOURCE`, for images of `image_size`, around a model on the meta device."""
    captioner, source = get_backbone(text, plugins=plugins)
    config = read_config(source, captioner.model_types)
    config_for_size(captioner, config, image_size, plugins=plugins)
    backbone = captioner.from_model(source, captioner.meta_model(config))
    if image_size is not None:
        backbone.set_image_size(image_size)
    return backbone
