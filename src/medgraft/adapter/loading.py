"""Load adapters, medgraft's packages and plain PEFT folders, onto the base model that they were trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import nn

from medgraft import hardware
from medgraft.adapter.attaching import attach_peft
from medgraft.adapter.base_name import located_base
from medgraft.adapter.base_weights import check_base
from medgraft.adapter.compact import add_changes, changed_shapes
from medgraft.adapter.contents import Contents, check_bytes, read_contents
from medgraft.adapter.locating import locate
from medgraft.adapter.manifest import CHANGES, TENSORS, TRAINED_ON, Manifest
from medgraft.adapter.peft_base import base_of
from medgraft.adapter.tensor_files import StoredTensor
from medgraft.adapter.trained_on import TrainedOn
from medgraft.backbones import Backbone, get_backbone
from medgraft.backbones.half_weights import Held
from medgraft.errors import AdapterError
from medgraft.generation_config import GenerationConfig
from medgraft.model_config import ModelConfig
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_adapter
from medgraft.strategies import Quantization, Strategy, dequantize
from medgraft.train_config import Dtype

_logger = logging.getLogger("medgraft")
_ADDED_TO_PRODUCTS = (".lora_A.", ".lora_B.", ".ia3_l")


@dataclass(frozen=True)
class LoadedAdapter:
    """A backbone with an adapter, and its installed kernels.

    `manifest` is None for a plain PEFT folder, `trained_on` also for a package of an older version. `given_prompt` takes the
    place of the prompt used in training. `name` is the folder, or `USER/REPO@COMMIT` for one from the hub. `base` is
    `NAME:SOURCE` of the base on this machine.
    """

    backbone: Backbone
    model: nn.Module
    manifest: Manifest | None
    acceleration: tuple[str, ...] = ()
    trained_on: TrainedOn | None = None
    given_prompt: str | None = None
    name: str | None = None
    base: str = ""
    asked: Dtype | None = None

    @property
    def prompt(self) -> str | None:
        """The prompt given, else that of the training; None if unknown, which stands for the backbone's default."""
        return self.given_prompt if self.given_prompt is not None or self.manifest is None else self.manifest.prompt

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in: what was asked for, else that of its training where this machine has it."""
        return _computes_in(self.manifest, self.asked)

    @property
    def generation(self) -> GenerationConfig:
        """The generation settings of the run that trained it; the defaults for a plain PEFT folder."""
        stored = self.manifest.evaluation.get("generation") if self.manifest else None
        return GenerationConfig(**stored) if stored else GenerationConfig()


@dataclass(frozen=True)
class BaseOptions:
    """How an adapter's base is loaded: quantised under a plain PEFT adapter, what it computes in, and where its weights lie."""

    quantization: Quantization = "none"
    dtype: Dtype | None = None
    placement: ModelConfig = field(default_factory=ModelConfig)


def load_adapter(
    source: str | Path,
    *,
    plugins: PluginManager,
    backbone: str | None = None,
    options: BaseOptions = BaseOptions(),
    allow_base_mismatch: bool = False,
    plain: bool | Literal["dequantized"] = False,
) -> LoadedAdapter:
    """Load the adapter that `locate` finds onto its base; `backbone` (`NAME:SOURCE`) locates the base on this machine.

    The kernels used in training are installed if they apply here, so in the run's precision the logits are bit-identical to
    those at saving; with `plain` none are, and it computes in fp32. If that is `dequantized`, a quantised base has the layers
    of the unquantised model, with the values that its own stand for. AdapterError if files are missing or altered, or if the
    base has other weights; with `allow_base_mismatch` that is a warning. A plain PEFT folder is loaded too, onto `backbone` or
    the base that it names, in the quantisation of `options`. It computes in their dtype, by default in that of its training
    where this machine has it; the base of a plain PEFT folder is held in fp32 without a dtype.
    """
    quantization, dtype = options.quantization, options.dtype
    located = locate(source)
    contents = read_contents(located.folder)
    check_bytes(contents)
    folder, manifest = contents.folder, contents.manifest
    if manifest is not None and quantization not in ("none", manifest.strategy_settings.quantization):
        own = manifest.strategy_settings.quantization
        raise AdapterError(
            f"{folder} was trained on a base in quantization {own!r} and is loaded on no other, such as {quantization!r}. "
            "Leave the quantization out."
        )
    base = backbone or base_here(contents, plugins=plugins)
    if manifest is None:
        _logger.warning(
            f"{folder} is a plain PEFT adapter: without medgraft's digests it cannot be told whether it was altered."
        )
    if not contents.weights:
        _logger.warning(f"{folder} holds no trained weights, so it captions as its base does: training changed nothing.")

    if manifest is not None:  # reads the base's files before it is loaded, so that they are not in memory twice
        backbone_class, base_source = get_backbone(base, plugins=plugins)
        backbone_class.checkpoint_digests(base_source)
    needed = _needs_fp32(contents)
    computes_in = torch.float32 if plain or (manifest is None and dtype is None) else _computes_in(manifest, dtype)
    loaded, model, acceleration = prepare_adapter(
        base, manifest.strategy_settings if manifest else Strategy(quantization=quantization),
        partial(attach, contents=contents, allow_mismatch=allow_base_mismatch, dequantized=plain == "dequantized"),
        plugins=plugins,
        held=Held(computes_in, needed, options.placement),
        trained_with=() if plain else manifest.acceleration if manifest else None,
        image_size=manifest.image_size if manifest else None,
    )  # fmt: skip
    trained_on = TrainedOn.read(folder) if TRAINED_ON in contents.files else None
    return LoadedAdapter(loaded, model, manifest, acceleration.installed, trained_on, name=located.name, base=base, asked=dtype)


def _computes_in(manifest: Manifest | None, asked: Dtype | None) -> torch.dtype:
    """What to compute in: what was asked for, by default that of the training where this machine has it."""
    own = "auto" if manifest is None else manifest.dtype
    if asked not in (None, "auto"):
        return hardware.compute_dtype(asked)
    if own in ("auto", "fp32"):
        return hardware.compute_dtype(own)
    fastest = hardware.compute_dtype()
    return torch.float16 if own == "fp16" and hardware.device().type == "cuda" else fastest


def _needs_fp32(contents: Contents) -> Callable[[str], bool]:
    """Which of the base's weights have to be loaded in fp32: those that the adapter changes, or uses by themselves.

    LoRA and IA3 use a weight only in its layer's product. With any other kind of tensor all weights are loaded in fp32.
    """
    own = contents.tensors.get(contents.peft_weights or "", {})
    plain = all(any(kind in name for kind in _ADDED_TO_PRODUCTS) for name in own)
    init = (contents.settings or {}).get("init_lora_weights", True)
    whole = not plain or (isinstance(init, str) and init != "gaussian")
    changed = {*contents.tensors.get(TENSORS, {}), *changed_shapes(contents)}
    return lambda name: whole or name in changed


def base_here(contents: Contents, *, plugins: PluginManager) -> str:
    """The base of the adapter in `contents` as `NAME:SOURCE` on this machine; AdapterError if it is not here."""
    return located_base(contents.folder, contents.manifest) if contents.manifest else base_of(contents, plugins=plugins)


def attach(base: Backbone, contents: Contents, *, allow_mismatch: bool = False, dequantized: bool = False) -> nn.Module:
    """Put the weights in `contents` onto the base, perhaps `dequantized` first; return the model, in which only they train.

    AdapterError if they do not fit, or if the base has other weights than in training, unless `allow_mismatch` is true.
    """
    folder, manifest = contents.folder, contents.manifest
    if dequantized:
        dequantize(base.model)
    if manifest is None:
        plain: nn.Module = attach_peft(base, contents, tokenizer_beside=True)
        return plain
    check_base(base, manifest, folder, allow_mismatch=allow_mismatch)
    base.model.requires_grad_(False)
    model: nn.Module = attach_peft(base, contents) if contents.peft_weights else base.model
    if TENSORS in manifest.files:
        _check_fits(base.model, contents.tensors[TENSORS], folder)
        _restore(base.model, load_file(folder / TENSORS))
    if CHANGES in manifest.files:
        add_changes(base.model, contents)
    return model


def _check_fits(model: nn.Module, tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            found = f"has shape {tuple(own[name].shape)}" if name in own else "does not exist"
            raise AdapterError(f"{folder / TENSORS}: {name} of shape {tensor.shape} {found} in the base.")


@torch.no_grad()
def _restore(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
        own[name].requires_grad_(True)  # kernels cast only frozen weights to bf16
