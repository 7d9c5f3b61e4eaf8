"""Which backbone a plain PEFT adapter is for, by the base model that its config names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from medgraft.adapter.contents import Contents
from medgraft.backbones import Backbone
from medgraft.backbones.published import published_config
from medgraft.errors import AdapterError, MedgraftError
from medgraft.plugin import PluginManager

_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


def base_of(contents: Contents, *, plugins: PluginManager) -> str:
    """`NAME:SOURCE` of the base that the plain PEFT adapter in `contents` names, if it is on this machine; logs which it is.

    AdapterError, with the option to add where it is known, if it is not, or if it belongs to no backbone or to several.
    """
    content = contents.settings or {}
    base = content.get("base_model_name_or_path")
    asked = f"{contents.folder} is a plain PEFT adapter"
    if not isinstance(base, str) or not base:
        raise AdapterError(f"{asked} and does not say which base it is for. Add --backbone NAME:SOURCE.")
    backbones = dict(_backbones(plugins))
    model_type, architectures = _local_model(base)
    if base in backbones and backbones[base].default_source:
        names = [base]
    else:
        published = published_config(base)
        wanted = model_type or (published.model_type if published else None)
        mapping = content.get("auto_mapping")
        model_class = mapping.get("base_model_class") if isinstance(mapping, dict) else None
        names = [
            name for name, backbone in backbones.items()
            if not backbone.default_source
            and (wanted in backbone.model_types if wanted else backbone.model_class == model_class)
        ]  # fmt: skip
        classes = {model_class, *architectures, *((published.architectures or ()) if published else ())}
        of_class = [name for name in names if backbones[name].model_class in classes]
        names = of_class or names  # which tells models of one type apart, as those for captions and for questions
        special = min((len(backbones[name].model_types) for name in names), default=0)
        names = [name for name in names if len(backbones[name].model_types) == special]  # before one for all chat models
    option = base if names == [base] else f"{names[0] if len(names) == 1 else 'NAME'}:{base}"
    if len(names) == 1 and (model_type or option == base):
        logging.getLogger(__name__).warning("The adapter names its base, and %s is used.", option)
        return option
    if model_type and not names:
        raise AdapterError(f"{asked} for {base}, a model of type {model_type!r}, for which there is no backbone here.")
    where = "" if model_type else ", which is no model on this machine"
    raise AdapterError(f"{asked}; its base is {base}{where}. Add --backbone {option}.")


def _backbones(plugins: PluginManager) -> Iterator[tuple[str, type[Backbone]]]:
    for name in plugins.names("backbone"):
        try:
            found = plugins.get("backbone", name)
        except (MedgraftError, ImportError):  # a plugin that cannot be used here is no candidate
            continue
        if isinstance(found, type) and issubclass(found, Backbone):
            yield name, found


def _local_model(base: str) -> tuple[str | None, tuple[str, ...]]:
    """Model type and classes of a folder or of a hub id that was downloaded with its weights; None if it is neither."""
    folder = Path(base)
    if not folder.is_dir():
        try:
            file = try_to_load_from_cache(base, "config.json")
            if not isinstance(file, str) or not any(isinstance(try_to_load_from_cache(base, n), str) for n in _WEIGHTS):
                return None, ()
        except ValueError:  # no hub id
            return None, ()
        folder = Path(file).parent
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError):
        return None, ()
    return config.model_type, tuple(config.architectures or ())
