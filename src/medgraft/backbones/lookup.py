"""A backbone class by name, and the source that the user named behind it."""

from __future__ import annotations

from pathlib import Path

from medgraft.backbones.base import Backbone
from medgraft.backbones.remote import RemoteCaptioner
from medgraft.errors import ConfigError, PluginError, StrategyError
from medgraft.plugin import PluginManager

AnyBackbone = Backbone | RemoteCaptioner
"""A loaded model: one that runs here, or the client of one behind an API."""


def split_name(text: str) -> tuple[str, str | None]:
    """`NAME:SOURCE` as (name, source); the source, a hub id or folder, is None if not given."""
    name, _, source = text.partition(":")
    return name, source or None


def get_captioner(text: str, *, plugins: PluginManager) -> tuple[type[Backbone] | type[RemoteCaptioner], str]:
    """The class and the source behind `NAME` or `NAME:SOURCE`; the class's own source if none is named."""
    name, source = split_name(text)
    captioner = plugins.get("backbone", name)
    if not (isinstance(captioner, type) and issubclass(captioner, Backbone | RemoteCaptioner)):
        raise PluginError(f"Backbone {name!r} is {captioner!r}, not a subclass of medgraft.plugin_api.Backbone.")
    source = source or captioner.default_source
    if source is None:
        raise ConfigError(f"Backbone {name!r} needs weights: write {name}:HUB_ID or {name}:FOLDER.")
    return captioner, str(Path(source).expanduser()) if source.startswith("~") else source


def prompt_for(captioner: AnyBackbone | type[RemoteCaptioner], wanted: str | None) -> str:
    """The prompt that is used: the wanted one, or the model's own."""
    return captioner.default_prompt if wanted is None else wanted


def get_backbone(text: str, *, plugins: PluginManager) -> tuple[type[Backbone], str]:
    """As get_captioner, for models that can be trained; StrategyError for those behind an API."""
    captioner, source = get_captioner(text, plugins=plugins)
    if issubclass(captioner, RemoteCaptioner):
        raise StrategyError(f"{text} is behind an API and cannot be trained here; its only strategy is zero-shot.")
    return captioner, source
