"""Adapters stored in few bytes: PEFT's weights in int8, and changes of other parameters in low rank, bf16 or int8.

`adapter_model.int8.safetensors` has the tensors of `adapter_model.safetensors` in int8. `trained_changes.safetensors` has what
training added to parameters of the base: whole, or as a product of two matrices `NAME::left` [M, R] and `NAME::right` [R, N],
except for the rows `NAME::rows` [K], which have `NAME::values` [K, N]. An int8 tensor has its scales, which it is multiplied
by, in `NAME::scale`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medgraft.adapter.saving import ADAPTER_CONFIG, ADAPTER_INT8, ADAPTER_WEIGHTS, CHANGES
from medgraft.errors import AdapterError

_SCALE, LEFT, RIGHT, ROWS, VALUES = "::scale", "::left", "::right", "::rows", "::values"


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


def dequantized(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that `quantized_to_int8` stored, in fp32; AdapterError for int8 values without a scale that fits."""
    values: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_SCALE):
            continue
        if name.endswith(ROWS):
            values[name] = tensor.long()
            continue
        scale = tensors.get(name + _SCALE)
        if not tensor.is_floating_point():
            rows, columns = (*tensor.shape, 0, 0)[:2]
            if tensor.ndim != 2 or scale is None or tuple(scale.shape) not in ((rows, 1), (1, columns)):
                raise AdapterError(f"Tensor {name} is {tensor.dtype} and has no scale for each row or column. Save it again.")
            tensor = tensor.float() * scale
        values[name] = tensor.float()
    return values


@contextmanager
def as_peft(folder: Path, files: Collection[str]) -> Iterator[Path]:
    """A folder that PEFT can read: `folder` itself, or a temporary one with the dequantised weights."""
    if ADAPTER_INT8 not in files:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary) / folder.name  # so that messages have the adapter's name
        plain.mkdir()
        shutil.copyfile(folder / ADAPTER_CONFIG, plain / ADAPTER_CONFIG)
        save_file(dequantized(load_file(folder / ADAPTER_INT8)), plain / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        yield plain


@torch.no_grad()
def add_changes(model: nn.Module, folder: Path) -> None:
    """Add the changes stored in `folder` to the parameters of `model`, which become trainable."""
    stored = dequantized(load_file(folder / CHANGES))
    own = dict(model.named_parameters())
    for name in dict.fromkeys(key.partition("::")[0] for key in stored):
        try:
            change = stored[name] if name in stored else stored[name + LEFT] @ stored[name + RIGHT]
            if name not in stored:
                change[stored[name + ROWS]] = stored[name + VALUES]
            own[name].add_(change.view(own[name].shape))
        except (KeyError, IndexError, RuntimeError):
            shapes = [tuple(tensor.shape) for key, tensor in stored.items() if key.partition("::")[0] == name]
            found = f"has shape {tuple(own[name].shape)}" if name in own else "does not exist"
            raise AdapterError(f"{folder / CHANGES}: {name} with {shapes} {found} in the base.") from None
        own[name].requires_grad_(True)  # kernels cast only frozen weights to bf16
