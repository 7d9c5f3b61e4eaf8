"""The fingerprint of a base: a digest of its weights as transformers loads them, whatever their files look like.

The names are those of the model that they are loaded into, so checkpoints with names of earlier versions of transformers are
the same base. Tensors that the model has no place for, or never runs, do not count. Numbers are those loaded in fp32. Nothing
is loaded: names and digests come from the files, so a model that is quantised on loading has the fingerprint of its files.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from medgraft.backbones.checkpoint import Checkpoint
from medgraft.backbones.weights import TensorDigest, stored_digest
from medgraft.types import lies_in


def fingerprint(digests: Mapping[str, TensorDigest]) -> str:
    """Hex SHA-256 over the names, shapes and values of loaded tensors."""
    return _whole({name: digest.sha256 for name, digest in digests.items()})


def former_fingerprint(checkpoint: Checkpoint) -> str:
    """The fingerprint of earlier versions: over all tensors as they are stored, so that it depends on the files' layout."""
    return _whole({name: digest.sha256 for name, digest in checkpoint.digests.items()})


def _whole(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name}:{digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def loaded_digests(checkpoint: Checkpoint, model: Any, never_run: Iterable[str] = ()) -> dict[str, TensorDigest]:
    """Digests, by their names in the transformers model `model` (on the meta device), of the tensors that it loads.

    Tied tensors count once, and modules that match `never_run` do not count. Of weights that are stored quantised all tensors
    count, under the names in the files.
    """
    if getattr(checkpoint.config, "quantization_config", None) is not None:
        return {name: digest.loaded for name, digest in checkpoint.digests.items()}
    found: dict[str, TensorDigest] = {}
    for name, (converter, sources) in _loaded_from(checkpoint.digests, model).items():
        if converter is None:
            found[name] = checkpoint.digests[next(iter(sources))].loaded
        else:
            found |= _converted(name, converter, sources, checkpoint.tensor, model)
    for tied, name in model.all_tied_weights_keys.items():  # tied on loading, unless the file has two different tensors
        if tied in found and found.setdefault(name, found[tied]) == found[tied]:
            del found[tied]
    return {name: digest for name, digest in found.items() if not lies_in(name, tuple(never_run))}


def _loaded_from(names: Iterable[str], model: Any) -> dict[str, tuple[WeightConverter | None, dict[str, str]]]:
    """For each tensor of `model` that a file has: what computes it, None for a plain copy, and from which names and patterns.

    As transformers.core_model_loading.convert_and_load_state_dict_in_model: of several names for one tensor the first counts.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    own, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, tuple[WeightConverter | None, dict[str, str]]] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own and name in own:
            target, pattern = rename_source_key(name, [], [], prefix, own)
        if target in own:
            converter = by_pattern[pattern] if pattern is not None else None
            found.setdefault(target, (converter, {}))[1][name] = pattern or name
    return found


def _converted(
    name: str, converter: WeightConverter, sources: Mapping[str, str], read: Callable[[str], torch.Tensor], model: Any
) -> dict[str, TensorDigest]:
    """Digests of the tensors that transformers computes from those in the file; read at every start, as they are rare."""
    own = copy.deepcopy(converter)
    for source, pattern in sources.items():
        tensor = read(source)
        own.add_tensor(name, source, pattern, tensor.float() if tensor.is_floating_point() else tensor)
    made = own.convert(name, model=model, config=model.config).items()
    return {target: stored_digest(value[0] if isinstance(value, list) else value).loaded for target, value in made}
