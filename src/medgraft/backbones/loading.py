"""Read checkpoints by hub id or folder; one clear line of error if they are not what was asked for."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from medgraft import hardware
from medgraft.backbones.base_files import (
    IMAGE_PROCESSOR_FILES,
    TOKENIZER_FILES,
    base_folder,
    check_json,
    check_settings,
)
from medgraft.backbones.half_weights import loaded_in
from medgraft.backbones.loaded_tensors import check_loaded
from medgraft.backbones.tokenizer_checks import check_tokenizer, unreadable
from medgraft.errors import BackboneError, first_line

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def read_config(source: str, model_types: tuple[str, ...]) -> PreTrainedConfig:
    """The model's configuration.

    BackboneError if there is none, if its model type is not one of `model_types`, if its weights are stored quantised by
    another library than bitsandbytes, and if a file beside it is empty or a Git LFS pointer.
    """
    kind = " or ".join(model_types) if len(model_types) < 9 else "a model of a type that this backbone takes"
    check_settings(source)
    is_folder = os.path.isdir(source)  # noqa: PTH112 - Path raises for a name of 300 characters
    if source.startswith((".", "/", "~")) and not is_folder:
        raise BackboneError(
            f"There is no folder {source}. A {kind} folder holds config.json, model.safetensors and a tokenizer."
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        check_json(source)
        if "custom code" in str(error):
            raise BackboneError(f"{source} needs Python code that comes with it, which medgraft never runs.") from None
        where = "is no model folder" if is_folder else "is neither a folder nor a model that the hub gave"
        raise BackboneError(f"{source} {where}: {first_line(error)}") from None
    if config.model_type not in model_types:
        raise BackboneError(f"{source} is not {kind}: its config.json says model_type {config.model_type!r}.")
    stored = quantized_by(config)
    if stored not in (None, "bitsandbytes"):
        raise BackboneError(
            f"{source} is stored quantised by {stored}, which is not supported. Name the unquantised checkpoint: the strategy "
            "qlora, or strategy.quantization=nf4, quantises it on loading. Checkpoints of bitsandbytes load as they are."
        )
    return config


def quantized_by(config: PreTrainedConfig) -> str | None:
    """The library that quantised the stored weights, in transformers' word (`quant_method`); None if they are not quantised."""
    for part in (config, *(getattr(config, name) for name in config.sub_configs if hasattr(config, name))):
        settings = getattr(part, "quantization_config", None) or getattr(part, "compression_config", None)
        if settings is not None:
            stored = settings if isinstance(settings, dict) else settings.to_dict()
            in_bits = stored.get("load_in_4bit") or stored.get("load_in_8bit")
            method = stored.get("quant_method", "bitsandbytes" if in_bits else "an unknown library")
            return str(getattr(method, "value", method))
    return None


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
    match `never_run`, or if they are another model's.
    """
    loader: Any = getattr(transformers, model_class)
    quantized = (
        quantization is not None or quantized_by(AutoConfig.from_pretrained(source, trust_remote_code=False)) is not None
    )
    # transformers puts quantised weights on any accelerator that it finds, and 8-bit ones cannot be moved to the CPU again
    where: dict[str, Any] = {"device_map": {"": "cpu"}} if quantized and hardware.device().type == "cpu" else {}
    if quantization is not None:
        where["quantization_config"] = quantization
    try:
        if find_adapter_config_file(source) is not None:  # transformers would add that adapter to the weights
            raise BackboneError(f"{source} has an adapter_config.json: it holds an adapter. Name the base model's own folder.")
        with loaded_in(dtype, names):
            model, info = loader.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **where
            )
    except (OSError, ValueError) as error:
        raise BackboneError(f"{source} cannot be loaded as {model_class}: {first_line(error)}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise BackboneError(
            f"{source} has tensors of other shapes than its config.json says: they do not belong together."
        ) from None
    check_loaded(source, model, info, never_run)
    loaded: nn.Module = model.eval()
    if quantized or (names and not _mostly_mapped(loaded)):
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
    """The tokenizer of `source`, or in its `subfolder`; BackboneError if it is not whole or not that of the model."""
    where = f"{source}/{subfolder}" if subfolder else source
    try:
        # offline, transformers does not find the files in a subfolder of a hub id
        place = _files_in(source, subfolder) if subfolder else source
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare exceptions
        check_json(source)
        raise unreadable(where, base_folder(source), subfolder, error) from error
    text = config.qformer_config if subfolder else config.get_text_config(decoder=True)
    check_tokenizer(where, Path(base_folder(source) or "", subfolder), tokenizer, getattr(text, "vocab_size", None))
    return tokenizer


def _files_in(source: str, subfolder: str) -> str:
    """The folder of the tokenizer files in `subfolder` on this machine, downloaded if need be; OSError if there are none."""
    found = [
        cached_file(
            source, name, subfolder=subfolder, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        for name in TOKENIZER_FILES
    ]  # fmt: skip
    for path in found:
        if path is not None:
            return str(Path(path).parent)
    raise OSError(f"no tokenizer file lies in {subfolder}")


def load_image_processor(source: str) -> Any:
    """The image processor of `source`, always the PIL one, so that results do not depend on torchvision."""
    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)
    except (OSError, ValueError) as error:
        check_json(source)
        folder = base_folder(source)
        if folder is not None and not any((folder / name).is_file() for name in IMAGE_PROCESSOR_FILES):
            raise BackboneError(
                f"{source} has no image processor: {' or '.join(IMAGE_PROCESSOR_FILES)} is missing. "
                "Copy it from where the model came from."
            ) from None
        raise BackboneError(f"{source} has no image processor that can be read: {first_line(error)}") from error
