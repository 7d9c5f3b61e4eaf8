"""Any adapter as a LoRA: the truncated singular value decomposition of what training changed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from medgraft.adapter import Contents, Manifest, adapter_bytes, load_adapter, read_contents, save_weights, write_package
from medgraft.adapter.compact import LEFT, RIGHT, ROWS, VALUES, quantized_to_int8
from medgraft.adapter.lineage import ancestor
from medgraft.adapter.loading import base_here
from medgraft.adapter.manifest import ADAPTER_INT8, ADAPTER_WEIGHTS, CHANGES, WEIGHTS, Conversion
from medgraft.backbones import Backbone
from medgraft.config import DataConfig
from medgraft.conversion.derived import applied, derived, manifest_of
from medgraft.conversion.low_rank import LowRank, low_rank, low_rank_table
from medgraft.conversion.merge import merge_into_base
from medgraft.conversion.new_folder import check_new
from medgraft.conversion.quality import Quality, quality, validation_examples
from medgraft.errors import AdapterError, ConfigError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import PartPlan, Strategy, dequantize, logged_warnings, quantized_modules
from medgraft.types import Anatomy

StoredDtype = Literal["fp32", "bf16", "int8"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExtractOptions:
    """`rank` of every matrix, or None for one that keeps the share `keep` of the energy (squared values) of its change.

    In tables outside linear layers, such as embeddings, every row keeps this share of its own (with `rank` half of it); rows
    that would not are stored whole.

    `linear_only` drops what is not in linear layers. What it costs is measured on the first `images` validation images of
    `data`: None stands for all images and for the data of the training; with 0 images it is not measured.
    """

    rank: int | None = None
    keep: float = 0.99
    dtype: StoredDtype = "fp32"
    linear_only: bool = False
    data: DataConfig | None = None
    images: int | None = None


@dataclass(frozen=True)
class Extracted:
    """A low-rank package. `whole` counts tensors stored as they are, `dropped` those left out, with `dropped_energy` of all.

    `before` and `after` are None if no validation data was found.
    """

    folder: str
    bytes_before: int
    bytes: int
    low_rank: int
    ranks: tuple[int, int]
    whole: int
    dropped: int
    dropped_energy: float
    before: Quality | None
    after: Quality | None
    images: int


@dataclass(frozen=True)
class _Change:
    """What training added to the parameters of the base: in linear layers as LoRA, elsewhere in low rank or whole."""

    lora: Mapping[str, LowRank]  # by module
    factors: Mapping[str, LowRank]  # by parameter
    whole: Mapping[str, torch.Tensor]  # by parameter
    dropped: tuple[str, ...]
    dropped_energy: float


def extract_adapter(
    adapter: str | Path,
    out: Path,
    *,
    plugins: PluginManager,
    backbone: str | None = None,
    options: ExtractOptions = ExtractOptions(),
) -> Extracted:
    """Write the adapter to the new folder `out` in low rank, and measure what that costs."""
    if not 0 < options.keep <= 1 or (options.rank is not None and options.rank < 1):
        raise ConfigError(f"Rank {options.rank}, keep {options.keep}: a rank is 1 or more, keep is above 0 and at most 1.")
    check_new(out)
    contents = read_contents(adapter)
    where = backbone or base_here(contents, plugins=plugins)
    examples = validation_examples(options.data, contents.manifest, options.images, plugins=plugins)
    change, manifest = _extracted(contents, where, out, plugins=plugins, options=options)
    before, after = (
        quality(load_adapter(f, plugins=plugins, backbone=where), examples, plugins=plugins) if examples else None
        for f in (contents.folder, out)
    )
    ranks = [part.rank for part in (*change.lora.values(), *change.factors.values())]
    return Extracted(
        str(out), _weight_bytes(contents), adapter_bytes(manifest), len(ranks), (min(ranks, default=0), max(ranks, default=0)),
        len(change.whole), len(change.dropped), change.dropped_energy, before, after, len(examples),
    )  # fmt: skip


def _extracted(
    contents: Contents, where: str, out: Path, *, plugins: PluginManager, options: ExtractOptions
) -> tuple[_Change, Manifest]:
    """Write the package; `where` is the base on this machine."""
    loaded = load_adapter(contents.folder, plugins=plugins, backbone=where, plain="dequantized")
    source = manifest_of(loaded)
    merge_into_base(loaded)
    trained = {name: parameter.detach().cpu() for name, parameter in loaded.backbone.model.named_parameters()}
    base = load_model(where, source.strategy_settings, plugins=plugins)
    quantized = quantized_modules(base.model)
    dequantize(base.model)
    change = _change(base.model, trained, options, quantized)
    if not (change.lora or change.factors or change.whole):
        raise AdapterError(f"{contents.folder} changes nothing{' in linear layers' if options.linear_only else ''}.")
    strategy = _strategy(source.strategy_settings, base.anatomy, change)
    conversion = Conversion(action="extract", settings=_described(change, options), sources=(ancestor(contents),))

    def write_files(folder: Path) -> Iterable[str]:
        files = _write(folder, base, trained, change, options, strategy)
        return (*files, loaded.trained_on.write(folder)) if loaded.trained_on else files

    return change, write_package(out, derived(source, conversion, strategy, _training(change, source)), write_files)


def _change(
    model: nn.Module, trained: Mapping[str, torch.Tensor], options: ExtractOptions, quantized: Collection[str]
) -> _Change:
    """What training changed; in low rank where that takes less space, and always in layers that are `quantized`."""
    own = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    if odd := [name for name, tensor in own.items() if name not in trained or trained[name].shape != tensor.shape]:
        raise AdapterError(f"Training changed the shape of {odd[0]}, which low rank cannot express.")
    changes = {n: trained[n].float() - own[n].float() for n in own if not torch.equal(trained[n], own[n])}
    names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    linear = {
        f"{name}.weight": name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and names[id(module.weight)] == 1  # LoRA would untie tied weights
    }
    lora: dict[str, LowRank] = {}
    factors: dict[str, LowRank] = {}
    whole: dict[str, torch.Tensor] = {}
    dropped: list[str] = []
    for name, change in changes.items():
        if name not in linear and options.linear_only:
            dropped.append(name)
            continue
        if name in linear:
            matrix = change.T if isinstance(model.get_submodule(linear[name]), Conv1D) else change
            part = low_rank(matrix, options.rank, options.keep)
            always = options.linear_only or options.rank is not None or linear[name] in quantized
            if always or part.numel <= change.numel():
                lora[linear[name]] = part
                continue
        elif change.squeeze().ndim > 1:
            matrix = change.squeeze()
            part = low_rank_table(matrix.reshape(len(matrix), -1), options.rank, options.keep)
            if part.numel < change.numel():
                factors[name] = part
                continue
        whole[name] = change
    energy = {name: float(change.double().square().sum()) for name, change in changes.items()}
    lost = sum(energy[name] for name in dropped) / max(sum(energy.values()), 1e-300)
    return _Change(lora, factors, whole, tuple(dropped), lost)


def _write(
    folder: Path,
    base: Backbone,
    trained: Mapping[str, torch.Tensor],
    change: _Change,
    options: ExtractOptions,
    strategy: Strategy,
) -> list[str]:
    """Write the weights; `trained` are the parameters after training, of which whole ones are stored exactly in fp32."""
    own = dict(base.model.named_parameters())
    model = _with_lora(base, change.lora, options.dtype) if change.lora else base.model
    names = {id(parameter): name for name, parameter in base.model.named_parameters()}  # PEFT moves those of its layers
    exact = tuple(change.whole) if options.dtype == "fp32" else ()
    for name in exact:
        own[name].data = trained[name]
    direct = tuple(names[id(own[name])] for name in exact)
    files = list(save_weights(folder, applied(strategy, model, direct), dict.fromkeys(direct, "")))
    rest = {names[id(own[name])]: tensor for name, tensor in change.whole.items() if name not in exact}
    for name, part in change.factors.items():
        stored = {LEFT: part.left, RIGHT: part.right, ROWS: part.rows, VALUES: part.values}
        rest |= {names[id(own[name])] + suffix: tensor for suffix, tensor in stored.items()}
    if rest:
        save_file(_stored(rest, options.dtype), folder / CHANGES, metadata={"format": "pt"})
        files.append(CHANGES)
    if options.dtype == "int8" and change.lora:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        save_file(quantized_to_int8(tensors), folder / ADAPTER_INT8, metadata={"format": "pt"})
        (folder / ADAPTER_WEIGHTS).unlink()
        files[files.index(ADAPTER_WEIGHTS)] = ADAPTER_INT8
    return files


def _stored(tensors: Mapping[str, torch.Tensor], dtype: StoredDtype) -> dict[str, torch.Tensor]:
    if dtype == "int8":
        return quantized_to_int8(tensors)
    wanted = _DTYPES[dtype]
    return {name: (t.to(wanted) if t.is_floating_point() else t).contiguous() for name, t in tensors.items()}


def _with_lora(base: Backbone, parts: Mapping[str, LowRank], dtype: StoredDtype) -> Any:
    """The model with the low-rank changes of its linear layers as LoRA of scale 1."""
    every = [name for name, _ in base.model.named_modules()]
    clash = any(other.endswith(f".{name}") for name in parts for other in every)
    usual = Counter(part.rank for part in parts.values()).most_common(1)[0][0]
    ranks = {f"^{re.escape(name)}": part.rank for name, part in parts.items() if part.rank != usual}
    config = LoraConfig(
        r=usual, lora_alpha=usual, rank_pattern=ranks, alpha_pattern=dict(ranks),
        target_modules="|".join(map(re.escape, parts)) if clash else list(parts),
    )  # fmt: skip
    with torch.random.fork_rng([]), logged_warnings():
        model = get_peft_model(base.model, config)
    for name, part in parts.items():
        layer = base.model.get_submodule(name)
        wanted = torch.bfloat16 if dtype == "bf16" else torch.float32
        layer.lora_A["default"].weight = nn.Parameter(part.right.to(wanted).contiguous())
        layer.lora_B["default"].weight = nn.Parameter(part.left.to(wanted).contiguous())
    return model


def _strategy(source: Strategy, anatomy: Anatomy, change: _Change) -> Strategy:
    """`source` with LoRA in the parts that have it; parts trained in full on a quantised base stay unquantised."""
    adapted = {anatomy.part_of(name) for name in change.lora}
    plans: dict[str, Any] = {}
    for part, plan in source.plans.items():
        keeps = plan.mode == "full" and (source.quantization != "none" or part not in adapted)
        plans[part] = plan if keeps else PartPlan(mode="adapter" if part in adapted else "frozen")
    ranks = [part.rank for part in change.lora.values()]
    options = {"r": max(ranks), "lora_alpha": max(ranks)} if ranks else {}
    return source.model_copy(update={**plans, "method": "LORA", "options": options})


def _described(change: _Change, options: ExtractOptions) -> dict[str, JsonValue]:
    """The settings, and what was dropped by them."""
    settings: dict[str, JsonValue] = {"rank": options.rank} if options.rank else {"keep": options.keep}
    settings |= {"dtype": options.dtype} | (
        {"linear_only": True, "dropped": len(change.dropped)} if options.linear_only else {}
    )
    return settings


def _training(change: _Change, source: Manifest) -> dict[str, Any]:
    stored = sum(part.numel for part in (*change.lora.values(), *change.factors.values()))
    return source.training | {
        "trainable_parameters": stored + sum(tensor.numel() for tensor in change.whole.values()),
        "in_place": len(change.whole) + len(change.factors),
    }


def _weight_bytes(contents: Contents) -> int:
    return sum((contents.folder / name).stat().st_size for name in WEIGHTS if name in contents.files)
