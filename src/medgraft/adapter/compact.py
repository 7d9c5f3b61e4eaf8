"""Adapters stored in few bytes: PEFT's weights in int8, and changes of other parameters in low rank, bf16 or int8.

`adapter_model.int8.safetensors` has the tensors of `adapter_model.safetensors` in int8. `trained_changes.safetensors` has what
training added to parameters of the base: whole, or as a product of two matrices `NAME::left` [M, R] and `NAME::right` [R, N],
except for the rows `NAME::rows` [K], ascending, which have `NAME::values` [K, N]. An int8 tensor has its scales, which it is
multiplied by, in `NAME::scale`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from medgraft.adapter.contents import Contents
from medgraft.adapter.manifest import CHANGES
from medgraft.adapter.tensor_files import LARGEST
from medgraft.errors import AdapterError

LEFT, RIGHT, ROWS, VALUES = "::left", "::right", "::rows", "::values"
_SCALE = "::scale"


def quantized_to_int8(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices in int8 with one fp32 scale for each row or each column, whichever are fewer; other tensors in bf16."""
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not tensor.numel():
            stored[name] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            continue
        axis = 1 if tensor.shape[0] <= tensor.shape[1] else 0
        scale = (tensor.float().abs().amax(axis, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        stored[name] = (tensor.float() / scale).round().to(torch.int8).contiguous()
        stored[name + _SCALE] = scale
    return stored


def dequantized(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors`, read from `path`, as they were before `quantized_to_int8`, in fp32; `NAME::rows` as they are.

    AdapterError for int8 values without a scale that fits, scales without values, and values of LARGEST or more.
    """
    values = {name: tensor for name, tensor in tensors.items() if not name.endswith(_SCALE)}
    if lost := sorted(tensors.keys() - values.keys() - {name + _SCALE for name in values}):
        raise AdapterError(f"{path}: {lost[0]} is a scale of no tensor. Copy it again.")
    for name, tensor in values.items():
        scale = tensors.get(name + _SCALE)
        if name.endswith(ROWS):
            continue
        if tensor.dtype == torch.int8 or scale is not None:
            shapes = [(len(tensor), 1), (1, tensor.shape[1])] if tensor.ndim == 2 else []
            if tensor.dtype != torch.int8 or scale is None or tuple(scale.shape) not in shapes:
                raise AdapterError(f"{path}: {name} is {tensor.dtype} and has no scale for each row or column. Save it again.")
            tensor = tensor.float() * scale.float()
        elif not tensor.is_floating_point():
            raise AdapterError(f"{path}: {name} is {tensor.dtype}, which no weights are stored in.")
        values[name] = _sound(path, name, tensor.float())
    return values


def changed_shapes(contents: Contents) -> dict[str, tuple[int, ...]]:
    """The shapes of the changes in an adapter's `trained_changes.safetensors`, by parameter, from the header alone.

    AdapterError if matrices do not belong together.
    """
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in contents.tensors.get(CHANGES, {}).items():
        if not key.endswith(_SCALE):
            name, separator, end = key.partition("::")
            parts.setdefault(name, {})[separator + end] = tensor.shape
    shapes: dict[str, tuple[int, ...]] = {}
    for name, part in parts.items():
        match part:
            case {"": shape} if len(part) == 1:
                shapes[name] = shape
            case {"::left": (m, r), "::right": (r2, n), "::rows": (k,), "::values": (k2, n2)} if len(part) == 4 and (
                r,
                k,
                n,
            ) == (r2, k2, n2):
                shapes[name] = (m, n)
            case _:
                found = ", ".join(f"{name}{end} {list(shape)}" for end, shape in part.items())
                raise AdapterError(f"{contents.folder / CHANGES}: {found} make no matrix. Copy it again.")
    return shapes


@torch.no_grad()
def add_changes(model: nn.Module, contents: Contents) -> None:
    """Add the changes in `contents` to the parameters of `model`, which become trainable; AdapterError unless all fit."""
    path, own = contents.folder / CHANGES, dict(model.named_parameters())
    shapes = changed_shapes(contents)
    for name, shape in shapes.items():  # before a matrix of this size is made
        if name not in own or math.prod(shape) != own[name].numel() or not own[name].is_floating_point():
            found = f"is {own[name].dtype} of shape {tuple(own[name].shape)}" if name in own else "does not exist"
            raise AdapterError(f"{path}: {name} of shape {shape} {found} in the base.")
    stored = dequantized(path, load_file(path))
    for name in shapes:
        change = stored[name] if name in stored else _multiplied(path, name, stored)
        own[name].add_(change.view(own[name].shape).to(own[name].device))
        own[name].requires_grad_(True)  # kernels cast only frozen weights to bf16


def _multiplied(path: Path, name: str, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    change = stored[name + LEFT] @ stored[name + RIGHT]  # [M, N]
    rows = stored[name + ROWS]
    ascending = not rows.is_floating_point() and bool((rows.diff() > 0).all()) and bool((rows >= 0).all())
    if not ascending or (len(rows) and int(rows[-1]) >= len(change)):
        raise AdapterError(f"{path}: {name}{ROWS} are no rows of a matrix with {len(change)}.")
    change[rows.long()] = stored[name + VALUES]
    return _sound(path, name, change)


def _sound(path: Path, name: str, values: torch.Tensor) -> torch.Tensor:
    """`values`; AdapterError for those that `check_finite` refuses in a file."""
    if not bool((values.abs() < LARGEST).all()):
        raise AdapterError(f"{path}: {name} holds a value above a million. Training diverged, or the file was altered.")
    return values
