"""Read checkpoints by hub id or folder; one clear line of error if they are not what was asked for."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from medgraft import hardware
from medgraft.backbones.half_weights import loaded_in
from medgraft.errors import BackboneError, first_line
from medgraft.types import lies_in

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def read_config(source: str, model_types: tuple[str, ...]) -> PreTrainedConfig:
    """The model's configuration; BackboneError if there is none or its model type is not one of `model_types`."""
    kind = " or ".join(model_types)
    is_folder = os.path.isdir(source)  # noqa: PTH112 - Path raises for a name of 300 characters
    if source.startswith((".", "/", "~")) and not is_folder:
        raise BackboneError(
            f"There is no folder {source}. A {kind} folder holds config.json, model.safetensors and a tokenizer."
        )
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        where = "is no model folder" if is_folder else "is neither a folder nor a model that the hub gave"
        raise BackboneError(f"{source} {where}: {first_line(error)}") from None
    if config.model_type not in model_types:
        raise BackboneError(f"{source} is not {kind}: its config.json says model_type {config.model_type!r}.")
    return config


def load_model(
    model_class: str,
    source: str,
    quantization: BitsAndBytesConfig | None,
    never_run: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    names: Collection[str] = (),
) -> nn.Module:
    """Load the weights of `source` into the transformers class `model_class`, in eval mode.

    The weights of `names` are loaded in `dtype`, others in fp32. BackboneError if tensors are missing, except in modules that
    match `never_run`.
    """
    loader: Any = getattr(transformers, model_class)
    # transformers puts quantised weights on any accelerator that it finds, and 8-bit ones cannot be moved to the CPU again
    where = {"device_map": {"": "cpu"}} if quantization is not None and hardware.device().type == "cpu" else {}
    try:
        if find_adapter_config_file(source) is not None:  # transformers would add that adapter to the weights
            raise BackboneError(f"{source} has an adapter_config.json: it holds an adapter. Name the base model's own folder.")
        with loaded_in(dtype, names):
            model, info = loader.from_pretrained(
                source, dtype=torch.float32, quantization_config=quantization, output_loading_info=True, **where
            )
    except (OSError, ValueError) as error:
        raise BackboneError(f"{source} cannot be loaded as {model_class}: {first_line(error)}") from error
    if missing := sorted(name for name in info["missing_keys"] if not lies_in(name, never_run)):
        raise BackboneError(f"{source} is no complete {model_class}: {len(missing)} tensors are missing, such as {missing[0]}.")
    loaded: nn.Module = model.eval()
    if quantization is not None or (names and not _mostly_mapped(loaded)):
        leave_file(loaded)
    return loaded


def _mostly_mapped(model: nn.Module) -> bool:
    """Whether most weights are those of the file itself, memory-mapped, and not copies in another dtype."""
    sizes = [(p.nbytes, _is_mapped(p)) for p in model.parameters()]
    return 2 * sum(size for size, mapped in sizes if mapped) > sum(size for size, _ in sizes)


def _is_mapped(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu and not tensor.untyped_storage().resizable()


def leave_file(model: nn.Module) -> None:
    """Copy tensors that are still memory-mapped, as one of them keeps the whole weights file in memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        if _is_mapped(tensor):
            tensor.data = tensor.data.clone()


def build_on_meta(model_class: str, config: PreTrainedConfig) -> nn.Module:
    """The model for `config` on the meta device: shapes and names without memory."""
    with torch.device("meta"):
        return build_random(model_class, config)


def build_random(model_class: str, config: PreTrainedConfig) -> nn.Module:
    """The model for `config` with random weights in fp32, unquantised."""
    builder: Any = getattr(transformers, model_class)
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    model: nn.Module = builder._from_config(config) if hasattr(builder, "_from_config") else builder.from_config(config)
    return model


def load_tokenizer(source: str, subfolder: str = "") -> Any:
    """The tokenizer of `source`."""
    try:
        return AutoTokenizer.from_pretrained(source, subfolder=subfolder)
    except (OSError, ValueError) as error:
        raise BackboneError(f"{source} has no tokenizer that can be read: {first_line(error)}") from error


def load_image_processor(source: str) -> Any:
    """The image processor of `source`, always the PIL one, so that results do not depend on torchvision."""
    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError) as error:
        raise BackboneError(f"{source} has no image processor that can be read: {first_line(error)}") from error
