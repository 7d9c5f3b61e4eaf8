"""What an adapter is, and how two differ, from their files alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from medgraft.adapter.contents import Contents
from medgraft.adapter.manifest import FileEntry
from medgraft.adapter.tensor_files import StoredTensor, tensor_digest
from medgraft.strategies import bare_name

_LORA_A = re.compile(r"\.lora_(?:embedding_)?A(?:\.weight)?$")
_DEPTH = 3  # components of a module's name that are distinguished


class Group(BaseModel):
    """The tensors below one module of the base: their number, elements, bytes and dtypes."""

    model_config = ConfigDict(frozen=True)
    module: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]


class AdapterInspection(BaseModel):
    """An adapter's content. `manifest` has what medgraft.json says but for the files, None for a plain PEFT folder.

    `ranks` maps the rank of LoRA layers to their number.
    """

    model_config = ConfigDict(frozen=True)
    folder: str
    manifest: dict[str, Any] | None
    settings: dict[str, Any] | None
    files: dict[str, FileEntry] | None
    ranks: dict[int, int]
    groups: tuple[Group, ...]

    @property
    def parameters(self) -> int:
        """The number of elements of all weights."""
        return sum(group.parameters for group in self.groups)


def inspect_adapter(contents: Contents) -> AdapterInspection:
    """What `contents` holds."""
    weights = contents.weights
    ranks = Counter(tensor.shape[0] for name, tensor in weights.items() if _LORA_A.search(name) and tensor.shape)
    manifest = contents.manifest
    return AdapterInspection(
        folder=str(contents.folder),
        manifest=manifest.model_dump(mode="json", exclude={"files"}) if manifest else None,
        settings=dict(contents.settings) if contents.settings is not None else None,
        files=manifest.files if manifest else None,
        ranks=dict(sorted(ranks.items())),
        groups=tuple(_groups(weights)),
    )


def _groups(weights: Mapping[str, StoredTensor]) -> Iterator[Group]:
    """By the first components of names, as many as it takes to tell some tensors apart."""
    bare = {name: bare_name(name).split(".") for name in weights}
    depth = next((d for d in range(1, _DEPTH) if len({tuple(parts[:d]) for parts in bare.values()}) > 1), _DEPTH)
    members: dict[str, list[StoredTensor]] = {}
    for name, parts in bare.items():
        members.setdefault(".".join(parts[:depth]), []).append(weights[name])
    for module, tensors in members.items():
        yield Group(
            module=module,
            tensors=len(tensors),
            parameters=sum(tensor.size for tensor in tensors),
            bytes=sum(tensor.end - tensor.start for tensor in tensors),
            dtypes=tuple(sorted({tensor.dtype for tensor in tensors})),
        )


class Difference(BaseModel):
    """A setting or tensor that differs; None where an adapter lacks it."""

    model_config = ConfigDict(frozen=True)
    name: str
    first: Any
    second: Any


class AdapterDifference(BaseModel):
    """How two adapters differ. `tensors` have other dtypes, shapes or bytes, or one adapter lacks them.

    `equal` counts the tensors that are the same in both.
    """

    model_config = ConfigDict(frozen=True)
    settings: tuple[Difference, ...]
    tensors: tuple[Difference, ...]
    equal: int


def compare_adapters(first: Contents, second: Contents) -> AdapterDifference:
    """Compare the manifests and PEFT's settings by key, and all tensors by name, dtype, shape and bytes."""
    mine, theirs = dict(_settings(first)), dict(_settings(second))
    settings = [
        Difference(name=key, first=mine.get(key), second=theirs.get(key))
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    ]
    ours, other = dict(_tensors(first)), dict(_tensors(second))
    tensors = [
        Difference(name=name, first=ours.get(name), second=other.get(name))
        for name in dict.fromkeys([*ours, *other])
        if ours.get(name) != other.get(name)
    ]
    return AdapterDifference(
        settings=tuple(settings), tensors=tuple(tensors), equal=len(ours.keys() | other.keys()) - len(tensors)
    )


def _settings(contents: Contents) -> Iterator[tuple[str, Any]]:
    if contents.manifest:
        yield from _flat("", contents.manifest.model_dump(mode="json", exclude={"files"}))
    yield from _flat("peft.", contents.settings or {})


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def _tensors(contents: Contents) -> Iterator[tuple[str, str]]:
    """Each tensor's dtype, shape and the first digits of its digest."""
    for file, tensors in contents.tensors.items():
        for name, tensor in tensors.items():
            yield name, f"{tensor} {tensor_digest(contents.folder / file, tensor)[:16]}"
