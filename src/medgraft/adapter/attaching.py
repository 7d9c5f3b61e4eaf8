"""Put a PEFT adapter onto a base: every tensor of the file is loaded and every tensor of the adapter comes from the file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from medgraft.adapter.compact import dequantized
from medgraft.adapter.contents import Contents
from medgraft.adapter.manifest import ADAPTER_CONFIG, ADAPTER_INT8
from medgraft.adapter.patterns import check_patterns
from medgraft.adapter.peft_files import read_peft_config, read_peft_tensors
from medgraft.adapter.tensor_names import fit_names
from medgraft.adapter.vocabulary import embedding_tensors, grow_vocabulary
from medgraft.backbones import Backbone
from medgraft.errors import AdapterError, MedgraftError, first_line
from medgraft.strategies import logged_warnings

Tensors = Mapping[str, torch.Tensor]
_TENSORS_A_MODULE = 16  # more than any method of PEFT adds to a module


def attach_peft(backbone: Backbone, contents: Contents, *, tokenizer_beside: bool = False) -> PeftModel:
    """Add the PEFT adapter in `contents` to `backbone.model`, trainable as in its training; returns PEFT's model.

    `tokenizer_beside` says that a tokenizer in its folder belongs to the adapter. AdapterError unless the file and the adapter
    have the same tensors, of the same shapes, and the loaded values are those of the file.
    """
    folder, settings, weights = contents.folder, contents.settings or {}, contents.peft_weights
    assert weights is not None
    asked = f"{folder} does not fit {backbone.source}"
    _check_amount(asked, backbone, contents)
    given, stored = read_peft_config(folder / ADAPTER_CONFIG, settings), read_peft_tensors(folder / weights)
    stored = dequantized(folder / weights, stored) if weights == ADAPTER_INT8 else stored
    with logged_warnings():
        try:
            config, tensors = fit_names(backbone.model, given, stored)
            grow_vocabulary(backbone, tensors, folder, tokenizer_beside)
            with torch.random.fork_rng([]):  # PEFT initialises weights at random before it loads them
                model = PeftModel(backbone.model, config)
            _compare_names(asked, tensors, model)
            set_peft_model_state_dict(model, dict(tensors))
        except MedgraftError:
            raise
        except Exception as error:  # 40 methods of PEFT raise whatever they like
            raise AdapterError(f"{asked}: PEFT cannot put it there, {type(error).__name__}: {first_line(error)}") from error
        _compare_values(asked, tensors, model)
    model.eval()
    return model


def _check_amount(asked: str, backbone: Backbone, contents: Contents) -> None:
    """Raise AdapterError for more tensors than the model can take, and for expressions that take too long to match."""
    modules, tensors = [name for name, _ in backbone.model.named_modules()], contents.tensors[contents.peft_weights or ""]
    if len(tensors) > _TENSORS_A_MODULE * len(modules):
        raise AdapterError(f"{asked}: it has more tensors than {len(modules):,} modules can take.")
    check_patterns(contents.folder / ADAPTER_CONFIG, contents.settings or {}, [*modules, *tensors])


def _compare_names(asked: str, tensors: Tensors, model: PeftModel) -> None:
    """Raise AdapterError unless `tensors` have the names and shapes of the adapter's, and perhaps embeddings too."""
    expected, embeddings = _adapter_tensors(model), embedding_tensors(model)
    surplus, lacking = sorted(tensors.keys() - expected.keys() - embeddings.keys()), sorted(expected.keys() - tensors.keys())
    if surplus or lacking:
        found = [f"{len(surplus)} of its {len(tensors)} tensors have no place there, such as {surplus[0]}"] if surplus else []
        if lacking:
            found.append(f"{len(lacking)} of the {len(expected)} tensors that it needs are not in it, such as {lacking[0]}")
        elif expected:
            found.append(f"a name there is {min(expected)}")
        raise AdapterError(f"{asked}: {'; '.join(found)}. Was it trained on this kind of model, and is its file whole?")
    for name, tensor in tensors.items():
        wanted = (embeddings | expected)[name].shape
        if tensor.shape != wanted:
            raise AdapterError(
                f"{asked}: {name} has shape {tuple(tensor.shape)}, but {tuple(wanted)} in this model. "
                "Pass the base that it was trained on with --backbone NAME:SOURCE."
            )


def _compare_values(asked: str, tensors: Tensors, model: PeftModel) -> None:
    """Raise AdapterError unless the adapter's values are those of `tensors`."""
    loaded = embedding_tensors(model) | _adapter_tensors(model)
    for name, tensor in tensors.items():
        found = loaded[name]
        if not torch.equal(found, tensor.to(found.device, found.dtype)):
            raise AdapterError(f"{asked}: PEFT did not take over the values of {name}. Load it with the version that saved it.")


def _adapter_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """What PEFT would save of the adapter."""
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model, model.state_dict(), save_embedding_layers=False)
    return found
