"""Read the two files of a PEFT adapter, and refuse by name what medgraft's forward pass would ignore or could not repeat."""

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

from medgraft.errors import AdapterError
from medgraft.strategies import UNSUITED, UNSUITED_OPTIONS

_TRAINED_ELSEWHERE = ("TRAINABLE_TOKENS", "FROD")  # cannot be trained here, but computed
# ways of initialising LoRA that change the base, and why that change cannot be made again
_CHANGED_BASE = {
    "pissa_niter": "a random decomposition of the base's weights",
    "corda": "data that are not in the adapter",
    "lora_ga": "data that are not in the adapter",
    "loftq": "a quantised copy of the base",
}


def read_peft_config(path: Path, content: Mapping[str, Any]) -> PeftConfig:
    """The config with the `content` of the file `path`, written by any version of PEFT; logs the keys that this one ignores.

    Trainable, and without a task type, which would select a wrapper with another forward pass. AdapterError for methods and
    options that cannot work here.
    """
    method = content.get("peft_type")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(method) if isinstance(method, str) else None
    if config_class is None:
        raise AdapterError(f"{path}: peft_type {method!r} is not a method of PEFT {peft.__version__}, which is installed here.")
    _refuse_ignored(path, str(method), config_class, content)
    fields = {field.name for field in dataclasses.fields(config_class) if field.init}
    if unknown := sorted(content.keys() - fields - {"runtime_config"}):
        logging.getLogger(__name__).warning(
            "%s: PEFT %s does not know and ignores %s.", path, peft.__version__, ", ".join(map(repr, unknown))
        )
    known = {key: value for key, value in content.items() if key in fields} | {"task_type": None, "inference_mode": False}
    try:
        return config_class(**known)
    except Exception as error:  # the checks of 40 classes of settings raise whatever they like
        raise AdapterError(f"{path} is not accepted by PEFT {peft.__version__}: {_first_line(error)}") from None


def read_peft_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, on the CPU."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} was cut off or altered: {_first_line(error)}. Copy it again.") from None
    # PEFT writes embeddings in modules_to_save twice where the vocabulary has grown
    plain = {name: name.replace(".modules_to_save.", ".") for name in tensors}
    twice = {n for n, p in plain.items() if n != p and p in tensors and torch.equal(tensors[n], tensors[p])}
    return {name: tensor for name, tensor in tensors.items() if name not in twice}


def _refuse_ignored(path: Path, method: str, config_class: type, content: Mapping[str, Any]) -> None:
    if issubclass(config_class, PromptLearningConfig):
        raise AdapterError(
            f"{path}: {method} puts learned vectors before the prompt, which medgraft's forward pass would ignore. "
            "Load it with PEFT, or train LoRA."
        )
    if method in UNSUITED and method not in _TRAINED_ELSEWHERE:
        raise AdapterError(f"{path}: {method} does not work in medgraft: it {UNSUITED[method]}. Load it with PEFT.")
    for option, why in UNSUITED_OPTIONS.items():
        if content.get(option):
            raise AdapterError(f"{path}: {option} is set, so this adapter {why}. Load it with PEFT.")
    init = str(content.get("init_lora_weights", True)).lower()
    for start, what in _CHANGED_BASE.items():
        if init.startswith(start):
            raise AdapterError(
                f"{path}: init_lora_weights={init!r} changed the base by {what}, so the base of the training cannot be made "
                "again. Convert it to plain LoRA where it was trained, by save_pretrained(..., "
                "path_initial_model_for_weight_conversion=...)."
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
