"""Find the names that an adapter's tensors have in this model, where other versions or wrappers named them differently.

Names are changed only where the change is certain: wrappers' components that are no modules (`_orig_mod`, `module`), a missing
prefix of PEFT's, the names that transformers itself gave before version 5 and still writes, and the names of a submodel that
the adapter was trained on alone. Every tensor of the file has to fit, else nothing is changed.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings

PREFIX = "base_model.model."
_WRAPPERS = ("_orig_mod", "module")  # of torch.compile and of DistributedDataParallel
_logger = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]


def fit_names(model: nn.Module, config: PeftConfig, tensors: Tensors) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """`config` and `tensors` with the names of `model`, a model without adapters; as they are if no naming fits.

    Logs one line if names were changed.
    """
    plain = _without_wrappers(model, tensors)
    for namings in _namings(model):
        fitting = [(what, names) for what, names in namings if all(_place(name, names) for name in plain if _is_inside(name))]
        results = {tuple(_renamed(name, names) for name in plain): (what, names) for what, names in reversed(fitting)}
        if len(results) != 1:  # none fits, or several parts of the model do
            continue
        (renamed, (what, names)), *_ = results.items()
        own = all(old == new for old, new in names.items())
        _tell_unmatched(config, names)
        if changed := [(old, new) for old, new in zip(tensors, renamed, strict=True) if old != new]:
            what = "a wrapper, or of another way of saving" if own else what
            _logger.warning("The names of %d tensors are those of %s: %s was taken for %s.", len(changed), what, *changed[0])
        config = _without_wrappers_in(config) if own and changed else config if own else _targeting(config, names, plain)
        return config, dict(zip(renamed, plain.values(), strict=True))
    return config, dict(tensors)


def _namings(model: nn.Module) -> Iterator[list[tuple[str, dict[str, str]]]]:
    """Ways of naming the model's modules that have parameters, {other name: own name}; the most certain first.

    Ways in one list are alternatives of which only one may fit.
    """
    own = {name.rpartition(".")[0]: name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    yield [("this model", own)]
    older = _names_before_transformers_5(model)
    yield [("an older transformers", older)]
    alone = []
    for part, module in model.named_modules():
        if part and isinstance(module, PreTrainedModel):
            for names, start in ((own, f"{part}."), (older, None)):
                inside = {old: new for old, new in names.items() if new.startswith(f"{part}.")}
                removed = start or _first_component(inside)
                alone.append((f"its {type(module).__name__} alone", {o.removeprefix(removed): n for o, n in inside.items()}))
    yield alone


def _names_before_transformers_5(model: nn.Module) -> dict[str, str]:
    """The model's names of modules by those that transformers writes into checkpoints, where every name stays one tensor's."""
    if not isinstance(model, PreTrainedModel):
        return {}
    changes = [change.reverse_transform() for change in get_model_conversion_mapping(model, add_legacy=False)[::-1]
               if isinstance(change, WeightRenaming)]  # fmt: skip
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return {apply_renamings(name, changes).rpartition(".")[0]: name.rpartition(".")[0] for name in names}


def _first_component(names: Iterable[str]) -> str:
    """The component that all names begin with, and its dot; empty if they differ."""
    first = {name.partition(".")[0] for name in names}
    return f"{first.pop()}." if len(first) == 1 else ""


def _without_wrappers(model: nn.Module, tensors: Tensors) -> dict[str, torch.Tensor]:
    used = {component for name, _ in model.named_modules() for component in name.split(".")}
    dropped = set(_WRAPPERS) - used
    plain = {".".join(c for c in name.split(".") if c not in dropped): tensor for name, tensor in tensors.items()}
    if not any(name.startswith("base_model.") for name in plain):  # saved without PEFT's own model around it
        plain = {PREFIX + name: tensor for name, tensor in plain.items()}
    return plain if len(plain) == len(tensors) else dict(tensors)


def _without_wrappers_in(config: PeftConfig) -> PeftConfig:
    changed: Any = copy.deepcopy(config)
    for field in ("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules"):
        value = getattr(changed, field, None)
        pattern = r"\b(_orig_mod|module)\\?\."
        if isinstance(value, str):
            setattr(changed, field, re.sub(pattern, "", value))
        elif value:
            setattr(changed, field, type(value)(re.sub(pattern, "", name) for name in value))
    return changed


def _tell_unmatched(config: PeftConfig, names: Mapping[str, str]) -> None:
    """Log the listed target modules that no module is called by."""
    targets = getattr(config, "target_modules", None)
    listed = sorted(map(str, targets)) if targets and not isinstance(targets, str) else []
    modules = {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}
    if unmatched := [target for target in listed if not any(f".{name}".endswith(f".{target}") for name in modules)]:
        _logger.warning("The adapter targets modules that this model does not have: %s.", ", ".join(unmatched))


def _is_inside(name: str) -> bool:
    """Whether a tensor belongs to a module of the base; a method may have others, which all its layers share."""
    return name.startswith(PREFIX)


def _place(name: str, names: Mapping[str, str]) -> str | None:
    """The longest start of a tensor's name that is a module in `names`."""
    parts = name.removeprefix(PREFIX).split(".")
    starts = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((start for start in starts if start in names), None)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    old = _place(name, names) if _is_inside(name) else None
    return name if old is None else PREFIX + names[old] + name[len(PREFIX) + len(old) :]


def _targeting(config: PeftConfig, names: Mapping[str, str], tensors: Tensors) -> PeftConfig:
    """`config` for the modules that it targets by their other names."""
    changed: Any = copy.deepcopy(config)
    present = {_place(name, names) for name in tensors}
    patterns = [field for field in ("rank_pattern", "alpha_pattern") if getattr(changed, field, None)]
    targeted = [old for old in names if (check_target_module_exists(config, old) if changed.target_modules else old in present)]
    changed.target_modules = _either(names[old] for old in targeted)
    if feedforward := getattr(changed, "feedforward_modules", None):
        among = [old for old in targeted if _is_feedforward(feedforward, old)]
        changed.feedforward_modules = _either(names[old] for old in among)
    for field in patterns:
        given = getattr(changed, field)
        keys = {old: get_pattern_key(given, old) for old in targeted}
        setattr(changed, field, {re.escape(names[old]): given[key] for old, key in keys.items() if key in given})
    for field in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(changed, field):
            setattr(changed, field, None)
    return changed


def _is_feedforward(wanted: str | Iterable[str], name: str) -> bool:
    """As PEFT's IA3 decides."""
    return bool(re.fullmatch(wanted, name)) if isinstance(wanted, str) else name.endswith(tuple(wanted))


def _either(names: Iterable[str]) -> str:
    """A regular expression for exactly these names."""
    return "|".join(map(re.escape, names))
