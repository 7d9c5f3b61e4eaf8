"""Save adapter packages.

A package contains `adapter_model.safetensors` and `adapter_config.json` in PEFT's format for the parameters that PEFT added,
`trained_tensors.safetensors` for those trained in place, `trained_on.safetensors`, the manifest `medgraft.json`, and a model
card.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from medgraft.adapter.card import write_card
from medgraft.adapter.manifest import MANIFEST, Manifest, file_entry, write_manifest
from medgraft.adapter.trained_on import TRAINED_ON
from medgraft.backbones.weights import TensorDigest, tensor_digests, tensor_layout
from medgraft.strategies import Applied

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTER_INT8 = "adapter_model.int8.safetensors"  # see compact.py, as for CHANGES
TENSORS, CHANGES = "trained_tensors.safetensors", "trained_changes.safetensors"
WEIGHTS = (ADAPTER_WEIGHTS, ADAPTER_INT8, TENSORS, CHANGES)


def save_weights(folder: Path, applied: Applied, base: Mapping[str, str]) -> tuple[str, ...]:
    """Write only the trained weights, replacing an older package in `folder`; returns the names of the files.

    `base` maps parameters trained in place to their digests before training; unchanged tensors are not saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).is_file():
        for name in (*WEIGHTS, ADAPTER_CONFIG, TRAINED_ON, MANIFEST):
            (folder / name).unlink(missing_ok=True)
    written: list[str] = []
    if applied.strategy.uses_adapter:
        with warnings.catch_warnings():
            if applied.strategy.method == "ADALORA":  # AdaLoRA may prune a layer to rank 0
                warnings.filterwarnings("ignore", message=".*tensor.s. have invalid shape")
            # by default PEFT contacts the hub to find out whether the vocabulary grew
            applied.model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
        written += [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
    if applied.direct:
        own = dict(_bare_model(applied.model).named_parameters())
        current = {name: own[name].detach().cpu().contiguous() for name in applied.direct}
        digests = tensor_digests(current)
        changed = {name: tensor for name, tensor in current.items() if digests[name] != base[name]}
        save_file(changed, folder / TENSORS, metadata={"format": "pt"})
        written.append(TENSORS)
    return tuple(written)


def finish_package(folder: Path, manifest: Manifest, files: tuple[str, ...]) -> Manifest:
    """Write card and manifest next to the weights; returns the manifest with the digests of `files`."""
    manifest = manifest.model_copy(update={"files": {name: file_entry(folder / name) for name in sorted(files)}})
    write_card(folder, manifest)
    write_manifest(folder, manifest)
    return manifest


def adapter_bytes(manifest: Manifest) -> int:
    """The total size of a package's weight files."""
    return sum(entry.bytes for name, entry in manifest.files.items() if name in WEIGHTS)


def in_place_digests(applied: Applied, checkpoint: Mapping[str, TensorDigest] | None = None) -> dict[str, str]:
    """Digests, by name, of the parameters that will be trained in place.

    A parameter found in `checkpoint` with the same dtype and shape is not hashed again. If loading changed its values it
    counts as trained, which only makes the package larger.
    """
    own = dict(_bare_model(applied.model).named_parameters())
    known = {name: checkpoint[name] for name in applied.direct if checkpoint and name in checkpoint}
    same = {name: digest.sha256 for name, digest in known.items() if digest.layout == tensor_layout(own[name])}
    return same | tensor_digests({name: own[name] for name in applied.direct if name not in same})


def _bare_model(model: nn.Module) -> nn.Module:
    base = getattr(model, "get_base_model", None)
    return base() if base is not None else model
