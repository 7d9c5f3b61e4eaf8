"""Read the two files of a PEFT adapter, whose settings peft_settings.py has checked."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file

from medgraft.errors import AdapterError, first_line


def read_peft_config(path: Path, content: Mapping[str, Any]) -> PeftConfig:
    """The config with the `content` of the file `path`, written by any version of PEFT; logs the keys that this one ignores.

    Trainable, and without a task type, which would select a wrapper with another forward pass. AdapterError for a method that
    this PEFT lacks, for one of its prompts, and for settings that it does not accept.
    """
    method = content.get("peft_type")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(method) if isinstance(method, str) else None
    if config_class is None:
        raise AdapterError(
            f"{path}: peft_type {method!r} is no method of the installed PEFT {peft.__version__}. A newer one may have it."
        )
    if issubclass(config_class, PromptLearningConfig):
        raise AdapterError(
            f"{path}: {method} puts learned vectors before the prompt, which medgraft's forward pass would ignore. "
            "Load it with PEFT, or train LoRA."
        )
    fields = {field.name for field in dataclasses.fields(config_class) if field.init}
    if unknown := sorted(content.keys() - fields - {"runtime_config"}):
        logging.getLogger(__name__).warning(
            "%s: PEFT %s does not know and ignores %s.", path, peft.__version__, ", ".join(map(repr, unknown))
        )
    known = {key: value for key, value in content.items() if key in fields} | {"task_type": None, "inference_mode": False}
    try:
        return config_class(**known)
    except Exception as error:  # the checks of 40 classes of settings raise whatever they like
        raise AdapterError(f"{path} is not accepted by PEFT {peft.__version__}: {first_line(error).rstrip('.')}") from None


def read_peft_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, on the CPU."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} was cut off or altered: {first_line(error).rstrip('.')}. Copy it again.") from None
    # PEFT writes embeddings in modules_to_save twice where the vocabulary has grown
    plain = {name: name.replace(".modules_to_save.", ".") for name in tensors}
    twice = {n for n, p in plain.items() if n != p and p in tensors and torch.equal(tensors[n], tensors[p])}
    return {name: tensor for name, tensor in tensors.items() if name not in twice}
