"""Check `adapter_config.json` before PEFT acts on it: its settings decide what is allocated, computed and imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medgraft.adapter.files import shown
from medgraft.adapter.tensor_files import StoredTensor
from medgraft.errors import AdapterError
from medgraft.strategies.unsuited import CHANGED_BASE, ONLY_LOADED, UNSUITED, UNSUITED_OPTIONS

_NAMES = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "layers_pattern", "target_parameters")
_MAX_TEXT, _MAX_ITEMS, _MAX_PATTERNS = 20_000, 5_000, 1_000  # PEFT tries every pattern on every module
_UNBOUNDED = re.compile(r"seed|key|step|tinit|tfinal|delta_?t|warmup|interval|label_mask_value", re.IGNORECASE)  # cost nothing
_LOOPS = re.compile(r"iter|terms|depth")
_MAX_LOOPS, _MAX_NUMBER, _MAX_ALPHA = 100, 4096, 1e5
_LORA = re.compile(r"\.lora_(embedding_)?(A|B)(\.weight)?$")


def check_settings(path: Path, settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Raise AdapterError for a setting in `path` that does not work here, or that disagrees with `tensors`, the weights."""
    for problem in _unsuited(settings):
        raise AdapterError(f"{path}: {problem}")
    for problem in _problems(settings, tensors):
        raise AdapterError(f"{path}: {problem}. Copy the adapter again from where it was made.")


def _unsuited(settings: Mapping[str, Any]) -> Iterator[str]:
    """Methods and options that medgraft's forward pass would ignore or could not repeat, or that fetch code or adapters."""
    method = settings.get("peft_type")
    if isinstance(method, str) and method in UNSUITED and method not in ONLY_LOADED:
        yield f"{method} does not work in medgraft: it {UNSUITED[method]}. Train another method, such as LoRA."
    for option, why in UNSUITED_OPTIONS.items():
        if settings.get(option):
            yield f"{option} is set, so this adapter {why}. Train it without this option."
    init = str(settings.get("init_lora_weights", True)).lower()
    for start, what in CHANGED_BASE.items():
        if init.startswith(start):
            yield (
                f"init_lora_weights={shown(init)} changed the base by {what}, so the base of the training cannot be made "
                "again. Convert it to plain LoRA where it was trained, by save_pretrained(..., "
                "path_initial_model_for_weight_conversion=...)."
            )


def _problems(settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    method = settings.get("peft_type")
    if not isinstance(method, str) or not re.fullmatch(r"[A-Z0-9_]{1,40}", method):
        yield f"peft_type must name a method of PEFT, and is {shown(method)}"
        return
    for key in _NAMES:
        yield from _name_problems(key, settings.get(key))
    for key, value in settings.items():
        if key.endswith("_pattern") and key != "layers_pattern" and value is not None and not isinstance(value, dict):
            yield f"{key} must map names of modules to values, and is {shown(value)}"
        yield from _size_problems(key, value)
    widest = max((sorted(tensor.shape)[-2] for tensor in tensors.values() if len(tensor.shape) > 1), default=0)
    yield from _number_problems(settings, max(widest, _MAX_NUMBER))
    if method == "LORA" and not settings.get("target_parameters"):
        yield from _rank_problems(settings, tensors)


def _name_problems(key: str, value: Any) -> Iterator[str]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        yield f"{key} must be a text or a list of texts, and is {shown(value)}"


def _size_problems(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        yield f"{key} has {len(value):,} characters; at most {_MAX_TEXT:,} are read"
    most = _MAX_PATTERNS if isinstance(value, dict) else _MAX_ITEMS
    if isinstance(value, list | dict) and len(value) > most:
        yield f"{key} has {len(value):,} items; at most {most:,} are read"


def _number_problems(settings: Mapping[str, Any], limit: int) -> Iterator[str]:
    """Numbers, in nested settings too, that would cost memory or time without bound."""
    for key, value in settings.items():
        if isinstance(value, dict) and not key.endswith("alpha_pattern"):
            yield from _number_problems(value, limit)
        elif isinstance(value, bool) or not isinstance(value, int | float) or _UNBOUNDED.search(key):
            continue
        else:
            most = _MAX_ALPHA if key.endswith("alpha") else _MAX_LOOPS if _LOOPS.search(key) else limit
            if abs(value) > most:
                yield f"{key} is {value:g}, and the weights allow at most {most:g}"
    ranks = [settings.get("r", 1), settings.get("init_r", 1), settings.get("lora_alpha", 1), settings.get("alpha", 1)]
    if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in ranks):
        yield f"r and alpha must be numbers, and are {', '.join(map(shown, ranks))}"


def _rank_problems(settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    """The rank of each LoRA matrix must be one that the settings give to some module; PEFT allocates by the settings."""
    rank, pattern, alpha = settings.get("r", 8), settings.get("rank_pattern") or {}, settings.get("lora_alpha", 8)
    alphas = [alpha, *(settings.get("alpha_pattern") or {}).values()]
    ranks = [rank, *pattern.values()]
    if not all(type(r) is int and r > 0 for r in ranks):
        yield f"r and the values of rank_pattern must be whole numbers above 0, and are {shown(ranks)}"
        return
    if not all(isinstance(a, int | float) and not isinstance(a, bool) and 0 < a <= _MAX_ALPHA for a in alphas):
        yield f"lora_alpha and the values of alpha_pattern must be numbers above 0, and are {shown(alphas)}"
    stored: dict[int, str] = {}
    widest = 1
    for name, tensor in tensors.items():
        if (found := _LORA.search(name)) and len(tensor.shape) > 1:
            if found[2] == "A":
                stored.setdefault(tensor.shape[0], name)
            if not (found[1] and found[2] == "A"):  # not the size of a vocabulary
                widest = max(widest, tensor.shape[1 if found[2] == "A" else 0])
    for own in stored.keys() - set(ranks):
        yield f"r is {shown(rank)}, but {stored[own]} has the shape {list(tensors[stored[own]].shape)}"
    if max(ranks) not in stored and (not pattern or max(ranks) > widest):
        yield f"it sets the rank {max(ranks)}, which none of the weights has"
