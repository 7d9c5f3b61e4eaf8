"""Save adapter packages, whole or not at all.

A package contains `adapter_model.safetensors` and `adapter_config.json` in PEFT's format for the parameters that PEFT added,
`trained_tensors.safetensors` for those trained in place (or both in the forms of compact.py), `trained_on.safetensors`, the
manifest `medgraft.json`, and a model card: what a colleague may have, without a path of the machine that made it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from medgraft.adapter.base_name import hub_id, public_base, public_options
from medgraft.adapter.card import card_text
from medgraft.adapter.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD,
    FILES,
    MANIFEST,
    TENSORS,
    WEIGHTS,
    Manifest,
    file_entry,
    read_manifest,
    write_manifest,
)
from medgraft.adapter.peft_writing import write_peft
from medgraft.adapter.whole_folder import link_or_copy, replacing
from medgraft.backbones.weights import TensorDigest, tensor_digests, tensor_layout
from medgraft.disk import lack
from medgraft.errors import AdapterError
from medgraft.redaction import redacted_text
from medgraft.strategies import Applied

_OURS = (*FILES, MANIFEST, CARD)


def write_package(folder: Path, manifest: Manifest, write_files: Callable[[Path], Iterable[str]]) -> Manifest:
    """Write a package in place of the one in `folder`; returns the manifest as written, with the digests of its files.

    `write_files` writes all files but manifest and card into the folder that it gets, and returns their names. Until everything
    is on the disk, `folder` has the old package. Files there that are not the package's stay. AdapterError if it cannot be
    written.
    """
    data = manifest.data | {"options": public_options(manifest.data.get("options", {}))}
    manifest = manifest.model_copy(update={"backbone": public_base(manifest.backbone), "data": data})
    try:
        with replacing(folder, package_files(folder)) as new:
            names = sorted(write_files(new))
            if ADAPTER_CONFIG in names:
                _name_base(new / ADAPTER_CONFIG, hub_id(manifest.backbone))
            manifest = manifest.model_copy(update={"files": {name: file_entry(new / name) for name in names}})
            (new / CARD).write_text(redacted_text(card_text(manifest, new, folder.resolve().name)), encoding="utf-8")
            write_manifest(new, manifest)
    except (OSError, SafetensorError) as error:
        reason = lack(error) or error
        raise AdapterError(f"The adapter cannot be written to {folder}: {reason}. What was there is unchanged.") from error
    return manifest


def update_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write another manifest and card for the files of the package in `folder`, in the way of `write_package`."""

    def keep_files(new: Path) -> Iterable[str]:
        for name in manifest.files:
            link_or_copy(folder / name, new / name)
        return manifest.files

    return write_package(folder, manifest, keep_files)


def package_files(folder: Path) -> frozenset[str]:
    """The names that files of a package have, among them those in the manifest of the package in `folder`."""
    try:
        return frozenset((*_OURS, *read_manifest(folder).files))
    except AdapterError:  # there is no package, or none that can be read
        return frozenset(_OURS)


def save_weights(folder: Path, applied: Applied, base: Mapping[str, str]) -> tuple[str, ...]:
    """Write only the trained weights into `folder`; returns the names of the files.

    `base` maps parameters trained in place to their digests before training; unchanged tensors are not saved.
    """
    written: list[str] = []
    if applied.strategy.uses_adapter:
        write_peft(folder, applied)
        written += [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
    if applied.direct:
        own = dict(_bare_model(applied.model).named_parameters())
        current = {name: own[name].detach().cpu().contiguous() for name in applied.direct}
        digests = tensor_digests(current)
        changed = {name: tensor for name, tensor in current.items() if digests[name] != base[name]}
        save_file(changed, folder / TENSORS, metadata={"format": "pt"})
        written.append(TENSORS)
    return tuple(written)


def _name_base(path: Path, base: str | None) -> None:
    """Write `base` into PEFT's config, where PEFT puts this machine's path of the model."""
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
