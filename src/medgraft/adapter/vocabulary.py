"""Vocabularies that have grown: an adapter's tokens beyond those of its base, with their embeddings and their tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from medgraft.adapter.tensor_names import PREFIX
from medgraft.backbones import Backbone
from medgraft.errors import AdapterError, first_line

_logger = logging.getLogger(__name__)


def embedding_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The base's parameters in the embedding and the output layer by name; PEFT saves them if a vocabulary has grown."""
    bare = [getattr(layer, "original_module", getattr(layer, "base_layer", layer)) for layer in _layers(model)]
    return {
        f"{name}.{own}": parameter
        for name, module in model.named_modules()
        if any(module is layer for layer in bare)
        for own, parameter in module.named_parameters(recurse=False)
    }


def grow_vocabulary(backbone: Backbone, tensors: Mapping[str, torch.Tensor], folder: Path, tokenizer_beside: bool) -> None:
    """Give `backbone` as many embeddings as the adapter's `tensors` have, and the tokenizer in `folder` that has more tokens.

    A tokenizer counts if `tokenizer_beside` is true and it has every token of the base's, with the same id. AdapterError if
    there are more embeddings than tokens known, or more tokens than embeddings.
    """
    tokenizer = _longer_tokenizer(backbone, folder) if tokenizer_beside else None
    stored = _stored_rows(backbone.model, tensors)
    have = len(backbone.model.get_input_embeddings().weight)
    rows = max([have, *(count for _, _, count in stored)])
    if rows > have:
        name, shape, _ = max(stored, key=lambda row: row[2])
        asked = f"{folder}: {name} has shape {shape}, but the vocabulary of {backbone.source} has {have} rows"
        if tokenizer is None:
            raise AdapterError(f"{asked}. Put the tokenizer of its training, with every token of the base, into the folder.")
        if {count for _, _, count in stored} != {rows} or len(stored) < len(_own_layers(backbone.model)):
            raise AdapterError(f"{asked}, and the new rows are not in the file for both embedding and output layer.")
        _resize(backbone.model, rows)
    if tokenizer is None:
        return
    if (last := max(tokenizer.get_vocab().values())) >= rows:
        raise AdapterError(f"{folder}: its tokenizer has token {last}, but the model has {rows} embeddings, from 0.")
    _logger.warning(
        "The tokenizer beside the adapter is used: it has %d tokens more.", len(tokenizer) - len(backbone.tokenizer)
    )
    backbone.tokenizer = tokenizer


def _resize(model: nn.Module, rows: int) -> None:
    """Give embedding and output layer `rows` rows; some models can do this only in their decoder."""
    embedding = _layers(model)[0]
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_input_embeddings() is embedding:
            try:
                with torch.random.fork_rng([]):
                    module.resize_token_embeddings(rows, mean_resizing=False)
                return
            except NotImplementedError:  # transformers raises it where this model cannot, but a part of it may
                continue
    raise AdapterError(f"The vocabulary of a {type(model).__name__} cannot grow to {rows} tokens.")


def _longer_tokenizer(backbone: Backbone, folder: Path) -> Any:
    """The tokenizer in `folder` if it has tokens that the backbone's lacks; None if there is no such tokenizer."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise AdapterError(f"The tokenizer in {folder} cannot be read: {first_line(error)}") from None
    own, other = backbone.tokenizer.get_vocab(), tokenizer.get_vocab()
    if other.keys() <= own.keys() and other.items() <= own.items():
        return None
    if not own.items() <= other.items():
        _logger.warning("The tokenizer beside the adapter has other ids than the base's and is not used.")
        return None
    return tokenizer


def _stored_rows(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, tuple[int, ...], int]]:
    """(tensor, shape, rows) for the embedding and output layers that the tensors of an adapter hold."""
    found = []
    for name in _own_layers(model):
        for end, axis in ((".weight", 0), (".base_layer.weight", 0), (".lora_embedding_A", 1)):
            key = f"{PREFIX}{name}{end}"
            if key in tensors:
                found.append((key, tuple(tensors[key].shape), tensors[key].shape[axis]))
                break
    return found


def _own_layers(model: nn.Module) -> list[str]:
    """Names of the embedding and the output layer; only one if they share their weights."""
    distinct = {id(layer.weight): layer for layer in _layers(model)[::-1]}
    return [name for name, module in model.named_modules() if any(module is layer for layer in distinct.values())]


def _layers(model: Any) -> list[Any]:
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer for layer in both if isinstance(getattr(layer, "weight", None), torch.Tensor)]
