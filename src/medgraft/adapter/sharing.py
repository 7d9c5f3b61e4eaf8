"""Equal weights of several models in memory once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_WRAPPED = (".base_layer", ".original_module")  # where PEFT puts a layer that it wraps


def share_weights(model: nn.Module, others: Iterable[nn.Module]) -> None:
    """Let frozen parameters of `model` use the memory of those of `others` with the same name, dtype and bits.

    Modules, kernels and `requires_grad` stay each model's own, and so do its results.
    """
    stored: dict[tuple[Any, ...], nn.Parameter] = {}
    for other in others:
        for name, parameter in other.named_parameters():
            stored.setdefault(_key(name, parameter), parameter)
    for name, parameter in model.named_parameters():
        same = stored.get(_key(name, parameter))
        if same is None or same.requires_grad or parameter.requires_grad or not torch.equal(parameter, same):
            continue
        parameter.data = same.data
        if getattr(parameter, "CB", None) is not None:  # bitsandbytes' second reference to 8-bit weights
            parameter.CB = parameter.data  # type: ignore[attr-defined]


def _key(name: str, parameter: nn.Parameter) -> tuple[Any, ...]:
    for wrapped in _WRAPPED:
        name = name.replace(wrapped, "")
    return name, parameter.dtype, parameter.shape, parameter.device
