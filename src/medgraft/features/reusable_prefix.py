"""The part of a model's forward pass that gives the same features at every step, and the key to store them under."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import PIL
import torch
import transformers
from torch import nn

from medgraft import hardware
from medgraft.backbones import Backbone
from medgraft.backbones.weights import tensor_checksum, tensor_digests
from medgraft.strategies import quantized_modules
from medgraft.types import Seam

SCHEMA = 5  # version of the store and its contents, which includes how images are opened


@dataclass(frozen=True)
class ReusablePrefix:
    """The seam whose features can be reused, or None, with the reason."""

    seam: Seam | None
    reason: str

    def __str__(self) -> str:
        return f"reused from seam {self.seam.name!r}: {self.reason}" if self.seam else f"not reused: {self.reason}"


def find_reusable_prefix(backbone: Backbone, *, prompted: bool = False) -> ReusablePrefix:
    """The highest seam below which the model in its current state trains nothing and is deterministic.

    A prefix is reusable if it contains no trained parameter, no PEFT layer, and no dropout in training mode; if images have
    prompts of their own (`prompted`), it must not depend on the prompt. Whether images are augmented is of no concern here:
    features are stored by the digest of a view.
    """
    best: Seam | None = None
    obstacle = ""
    for seam in backbone.seams:
        found = _obstacle(backbone, seam)
        if prompted and seam.depends_on_prompt:
            found = f"seam {seam.name!r} depends on the prompts, which differ"
        if found is not None:
            obstacle = found
            break
        best = seam
    if best is None:
        return ReusablePrefix(None, obstacle)
    return ReusablePrefix(best, obstacle or "all below it is frozen")


def _obstacle(backbone: Backbone, seam: Seam) -> str | None:
    parts = set(seam.prefix)
    for name, parameter in backbone.model.named_parameters():
        part = backbone.anatomy.part_of(name)
        if part in parts and parameter.requires_grad:
            return f"part {part!r} is trained"
    for name, module in backbone.model.named_modules():
        part = backbone.anatomy.part_of(name)
        if part not in parts:
            continue
        if hasattr(module, "base_layer"):
            return f"part {part!r} carries an adapter"
        if isinstance(module, nn.Dropout) and module.p > 0 and module.training:
            return f"part {part!r} has dropout"
    return None


def prefix_key(
    backbone: Backbone, seam: Seam, *, dtype: torch.dtype, prompt: str | None, base: str | None = None
) -> dict[str, Any]:
    """Everything but the image that affects the features at `seam`.

    `base` is the fingerprint of the base weights, if the caller loaded them and only applied a strategy since. The prefix is
    then identified by the fingerprint and checksums; without it every tensor of the prefix is hashed.
    """
    return {
        "schema": SCHEMA,
        "backbone": type(backbone).__name__,
        "code": _code_digest(type(backbone)),
        "config": hashlib.sha256(backbone.config.to_json_string().encode()).hexdigest()[:16],
        "seam": seam.name,
        "prompt": prompt if seam.depends_on_prompt else None,
        "prefix": _prefix_digest(backbone, seam, base),
        "layers": _layers_digest(backbone, seam),
        "images": backbone.image_settings(),
        "computed": hardware.dtype_name(dtype),
        "stored": str(stored_dtype(backbone, seam, dtype)).removeprefix("torch."),
        "device": backbone.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
    }


def stored_dtype(backbone: Backbone, seam: Seam, dtype: torch.dtype) -> torch.dtype:
    """The dtype that stores features without loss: `dtype` if the layer that reads the seam casts to it anyway.

    4-bit layers cast to their compute dtype; 8-bit layers compute in their input's dtype.
    """
    if not seam.consumer_casts_input:
        return torch.float32
    quantized = [backbone.model.get_submodule(name) for name in quantized_modules(backbone.model)]
    casts = all(getattr(module, "compute_dtype", torch.float32) == dtype for module in quantized)
    return dtype if casts else torch.float32


def _code_digest(kind: type[Backbone]) -> str:
    """SHA-256 over the source of a backbone's classes, so that a changed `forward_to` gets a new key."""
    whole = hashlib.sha256(importlib.metadata.version("medgraft").encode())
    for base in kind.__mro__[:-1]:
        whole.update(f"{base.__module__}.{base.__qualname__}".encode())
        try:
            whole.update(inspect.getsource(base).encode())
        except (OSError, TypeError):  # defined interactively, or built in
            continue
    return whole.hexdigest()[:16]


def _layers_digest(backbone: Backbone, seam: Seam) -> str:
    """SHA-256 over the class names of the prefix's modules, because kernels round differently."""
    modules = (m for name, m in backbone.model.named_modules() if backbone.anatomy.part_of(name) in seam.prefix)
    names = sorted({f"{type(module).__module__}.{type(module).__qualname__}" for module in modules})
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def key_digest(key: dict[str, Any]) -> str:
    """A key's SHA-256, the first 32 hex digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _prefix_digest(backbone: Backbone, seam: Seam, base: str | None) -> str:
    """SHA-256 over all tensors of the prefix, quantisation states included; with `base`, over that and checksums.

    Frozen weights are determined by the checkpoint, the quantisation settings and the bitsandbytes version. The hash also
    covers checksums of all tensors, because features of changed weights would be silently wrong.
    """
    tensors = {
        name: value
        for name, value in sorted(backbone.model.state_dict().items())
        if backbone.anatomy.part_of(name) in seam.prefix and isinstance(value, torch.Tensor)
    }
    if base is None:
        return _hash_of("tensors", tensor_digests(tensors))
    return _hash_of(f"base {base} {_quantization(backbone)}", {name: tensor_checksum(v) for name, v in tensors.items()})


def _quantization(backbone: Backbone) -> str:
    """A model's quantisation settings and bitsandbytes version; empty if it is not quantised."""
    config: Any = getattr(backbone.config, "quantization_config", None)
    if config is None and not quantized_modules(backbone.model):
        return ""
    settings = config.to_dict() if hasattr(config, "to_dict") else config
    return f"{json.dumps(settings, sort_keys=True, default=str)} bitsandbytes {importlib.metadata.version('bitsandbytes')}"


def _hash_of(what: str, values: Mapping[str, str]) -> str:
    lines = "".join(f"{name}:{value}\n" for name, value in values.items())
    return hashlib.sha256(f"{what}\n{lines}".encode()).hexdigest()
