"""Weights that can be held in the 16 bits that autocast computes in, without a change of any result."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from medgraft.backbones.checkpoint import stored_dtypes
from medgraft.model_config import ModelConfig
from medgraft.types import lies_in

if TYPE_CHECKING:
    from medgraft.backbones.from_checkpoint import FromCheckpoint

_STORED = {torch.bfloat16: {"BF16"}, torch.float16: {"F16"}}
_loading = Lock()


class Held(NamedTuple):
    """What frozen weights are loaded in, and where they are to lie.

    With a `dtype` of 16 bits the matrices of linear layers are loaded in it, which autocast casts to it anyway, and embeddings
    that are stored in it; except those that `fp32` says by name, and all in the backbone's `keep_in_fp32`. Quantised weights
    are loaded onto the GPUs that `placement` says; others are moved there later.
    """

    dtype: torch.dtype = torch.float32
    fp32: Callable[[str], bool] | None = None
    placement: ModelConfig = ModelConfig()


def half_weights(backbone: type[FromCheckpoint], source: str, config: PreTrainedConfig, held: Held) -> tuple[str, ...]:
    """Names of the weights that `backbone.load` loads in `held.dtype`."""
    if held.dtype == torch.float32:
        return ()
    fp32 = held.fp32 or (lambda name: False)
    found = _candidates(backbone.meta_model(config), held.dtype, lambda: stored_dtypes(source, config))
    return tuple(name for name in found if not fp32(name) and not lies_in(name, backbone.keep_in_fp32))


def _candidates(model: Any, dtype: torch.dtype, stored: Callable[[], Mapping[tuple[int, ...], set[str]]]) -> Iterator[str]:
    """Names in the transformers model `model` of the weights of linear layers, and of embeddings that are stored in `dtype`.

    `stored` gives the dtypes of stored tensors by shape. A weight that two modules share has to be one of these in both.
    """
    shapes: Mapping[tuple[int, ...], set[str]] | None = None
    fits: dict[str, bool] = {}
    for name, module in model.named_modules():
        if type(module) is nn.Embedding:
            shapes = stored() if shapes is None else shapes
            fits[f"{name}.weight"] = shapes.get(tuple(module.weight.shape)) == _STORED[dtype]
        elif type(module) in (nn.Linear, Conv1D):
            fits[f"{name}.weight"] = True
    for tied, name in model.all_tied_weights_keys.items():
        fits[tied] = fits[name] = fits.get(tied, False) and fits.get(name, False)
    for name, fit in fits.items():
        if fit and not (dtype == torch.float16 and overflows_in_fp16(model, name)):
            yield name


@contextmanager
def loaded_in(dtype: torch.dtype, names: Collection[str]) -> Iterator[None]:
    """Make from_pretrained load the weights of these names in `dtype`, and the others as it is told."""
    if not names:
        yield
        return
    plan = {rf"^(?:{'|'.join(map(re.escape, names))})$": dtype}
    patched: Any = PreTrainedModel
    former = patched._get_dtype_plan
    with _loading:
        patched._get_dtype_plan = lambda model, dtype: plan
        try:
            yield
        finally:
            patched._get_dtype_plan = former


def overflows_in_fp16(model: Any, name: str) -> bool:
    """Whether transformers keeps the module or weight `name` of `model` in fp32 when it loads the model in fp16."""
    return not set(name.split(".")).isdisjoint(model._keep_in_fp32_modules or ())
