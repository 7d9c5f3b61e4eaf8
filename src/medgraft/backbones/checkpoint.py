"""The weight files that transformers loads from a folder or hub id, and the digests of the tensors in them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from medgraft.backbones.base_files import base_folder, check_weights, reading
from medgraft.backbones.weights import StoredDigest, TensorDigest, in_parallel, stored_digest
from medgraft.errors import BackboneError, first_line
from medgraft.file_index import FileIndex, file_state

_ORDER = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)  # transformers takes the first
_OTHER_KINDS = (".gguf", ".h5", ".msgpack", ".onnx", ".ckpt")
_QUIET_BELOW = 4 << 30  # bytes of a file from which on hashing shows a progress bar


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration, and its tensors by their names in the files: the file that each is loaded from, and digests."""

    config: PreTrainedConfig
    files: Mapping[str, Path]
    digests: Mapping[str, StoredDigest]

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        with _opened(self.files[name]) as (_, read):
            return read(name)


def read_checkpoint(source: str, config: PreTrainedConfig) -> Checkpoint:
    """The checkpoint of a folder or hub id.

    Files in the file index are not read again. Of tensors that several files have, the last file's counts, as in transformers.
    """
    paths, index = checkpoint_files(source, config), FileIndex("tensors 2")
    known = index.find(paths)
    for path in paths:
        if path not in known:
            state = file_state(path)
            known[path] = _file_digests(path, loud=state is not None and state.size >= _QUIET_BELOW)
            index.enter({path: (state, known[path])} if state else {})
    digests = {
        name: StoredDigest(stored, TensorDigest(*loaded)) for path in paths for name, (stored, loaded) in known[path].items()
    }
    return Checkpoint(config, {name: path for path in paths for name in known[path]}, digests)


def checkpoint_files(source: str, config: PreTrainedConfig) -> Sequence[Path]:
    """The weight files of a folder or hub id that transformers loads, downloaded or cached by it, in its order.

    BackboneError if one is missing or not whole.
    """
    named: str | None = getattr(config, "transformers_weights", None)
    for name in (named,) if named else _ORDER:
        if (path := _find(source, name)) is None:
            continue
        check_weights(path)
        if not name.endswith(".index.json"):
            return (path,)
        shards = _shards(path)
        found = {shard: _find(source, shard) for shard in shards}
        if missing := [shard for shard, shard_path in found.items() if shard_path is None]:
            raise BackboneError(f"{source} is incomplete: {name} lists {missing[0]}, which is missing. Copy it again.")
        paths = [shard_path for shard_path in found.values() if shard_path is not None]
        for shard_path in paths:
            check_weights(shard_path)
        return paths
    folder = base_folder(source)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_KINDS) if folder is not None else []
    instead = f" {others[0]}, which lies there, is of another library." if others else ""
    raise BackboneError(f"{source} has no weights: none of {named or ', '.join(_ORDER)} exists.{instead}")


def is_cached(source: str) -> bool:
    """Whether all weight files of a hub id, in one of the forms that transformers loads, were downloaded before."""
    for name in _ORDER:
        path = try_to_load_from_cache(source, name)
        if isinstance(path, str):
            shards = _shards(Path(path)) if name.endswith(".index.json") else ()
            return all(isinstance(try_to_load_from_cache(source, shard), str) for shard in shards)
    return False


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{index} lists no weight files: {first_line(error)}. Download it again.") from None


def stored_dtypes(source: str, config: PreTrainedConfig) -> dict[tuple[int, ...], set[str]]:
    """The dtypes, as safetensors names them, of the stored tensors of each shape; empty for files of other kinds."""
    from safetensors import safe_open

    found: dict[tuple[int, ...], set[str]] = {}
    for path in checkpoint_files(source, config):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in list(file.keys()):
                    tensor = file.get_slice(name)
                    found.setdefault(tuple(tensor.get_shape()), set()).add(tensor.get_dtype())
    return found


def _find(source: str, name: str) -> Path | None:
    try:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False)
    except OSError as error:
        raise BackboneError(f"{source}: {name} cannot be had: {first_line(error)}") from error
    return Path(path) if path is not None else None


def _file_digests(path: Path, *, loud: bool) -> dict[str, StoredDigest]:
    with _opened(path) as (names, read):
        return in_parallel(stored_digest, names, read, progress=f"hashing {path.name}" if loud else None)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], torch.Tensor]]]:
    """The tensor names in a file, and a function that reads a tensor by name."""
    with reading(path):
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                yield list(file.keys()), file.get_tensor
        else:  # files of torch before 1.6 are no zip files and cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            tensors: dict[str, torch.Tensor] = {
                name: value for name, value in content.items() if isinstance(value, torch.Tensor)
            }
            yield list(tensors), tensors.__getitem__
