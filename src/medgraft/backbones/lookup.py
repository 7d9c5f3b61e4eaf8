"""A backbone class by name, and the source that the user named behind it."""

from __future__ import annotations

from pathlib import Path

from medgraft.backbones.base import Backbone
from medgraft.errors import ConfigError, PluginError
from medgraft.plugin import PluginManager


def split_name(text: str) -> tuple[str, str | None]:
    """`NAME:SOURCE` as (name, source); the source, a hub id or folder, is None if not given."""
    name, _, source = text.partition(":")
    return name, source or None


def get_backbone(text: str, *, plugins: PluginManager) -> tuple[type[Backbone], str]:
    """The class and the source behind `NAME` or `NAME:SOURCE`; the class's own source if none is named."""
    name, source = split_name(text)
    backbone = plugins.get("backbone", name)
    if not (isinstance(backbone, type) and issubclass(backbone, Backbone)):
        raise PluginError(f"Backbone {name!r} is {backbone!r}, not a subclass of medgraft.backbones.Backbone.")
    source = source or backbone.default_source
    if source is None:
        raise ConfigError(f"Backbone {name!r} needs weights: write {name}:HUB_ID or {name}:FOLDER.")
    return backbone, str(Path(source).expanduser()) if source.startswith("~") else source
