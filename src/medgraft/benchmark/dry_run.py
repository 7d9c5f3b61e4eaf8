"""Plans a suite without running it: downloads, the cost of each run on this machine, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from medgraft import hardware
from medgraft.backbones import (
    Backbone,
    RemoteCaptioner,
    get_backbone,
    get_captioner,
    load_without_weights,
    prompt_for,
)
from medgraft.backbones.checkpoint import checkpoint_files, is_cached
from medgraft.backbones.half_weights import Held, half_weights
from medgraft.backbones.image_size import config_for_size, refuse_size
from medgraft.backbones.loading import read_config
from medgraft.backbones.published import planning_config, published_config
from medgraft.backbones.side_by_side import refuse_several_images
from medgraft.benchmark.estimate import Base, Estimate, RunEstimate, estimate, measured_flops
from medgraft.benchmark.grid import GridPlan, fit, plan_grid
from medgraft.benchmark.plan import Planned, apply_to_meta, expand, refuse_training
from medgraft.benchmark.probe import probed_runs
from medgraft.benchmark.record import Record
from medgraft.benchmark.store_size import store_bytes
from medgraft.config import DataConfig, RunConfig, SuiteConfig
from medgraft.data import load_data, open_image
from medgraft.data.collate import CaptionPairs
from medgraft.errors import MedgraftError, StrategyError, UnknownNameError
from medgraft.machine import Hardware
from medgraft.metrics import with_task_metrics
from medgraft.models import settled
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, get_strategy, needs_fp32
from medgraft.token_counts import planned_statistics
from medgraft.types import SPLITS, CaptionData, Example


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights are: `folder`, `cached`, `hub` or `api`; `bytes` to download, None if unknown."""

    backbone: str
    where: str
    bytes: int | None


@dataclass(frozen=True)
class DryRun:
    """The plan of a suite; each line of `missing` names one thing that prevents runs.

    `images` counts them by data set and split; `notes` has sentences on what is left out, assumed, or leaks between splits.
    `trials` counts the runs that choose learning rates, `timings` those that only time steps; neither is in `runs`. `text` has
    token counts of the captions for each backbone whose tokenizer is here and each data set, as BACKBONE on DATA.
    `not_probed` has the reasons why runs were not probed.
    """

    suite: str
    hardware: Hardware
    flops_per_second: float
    images: Mapping[str, Mapping[str, int] | None]
    notes: Mapping[str, tuple[str, ...]]
    weights: tuple[Weights, ...]
    runs: tuple[RunEstimate, ...]
    left_out: Mapping[str, str]
    missing: tuple[str, ...]
    trials: int = 0
    timings: int = 0
    text: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grid: GridPlan | None = None
    not_probed: Mapping[str, str] = field(default_factory=dict)


def dry_run_suite(
    suite: SuiteConfig, *, plugins: PluginManager, records: Sequence[Record] = (), probes: bool = False
) -> DryRun:
    """Plan `suite`: downloads only configurations, sends and trains nothing. Unknown names raise as in the run.

    Times of the whole grid are fitted to `records` of some of its runs, or of smaller ones. With `probes` each run whose base
    is here and fits into free memory is measured by a few steps and a batch of captions.
    """
    missing: dict[str, None] = {}
    suite = with_task_metrics(suite, suite.data, plugins=plugins)
    planned = [(config, get_strategy(config.strategy, config.strategy_options, plugins=plugins)) for config in expand(suite)]
    for metric in {metric for config, _ in planned for metric in config.metrics}:
        plugins.get("metric", metric.partition(":")[0])
    data = {config.model_dump_json(): _data(config, plugins, missing) for config in suite.data}
    speed, machine = measured_flops(), hardware.describe()
    weights: dict[str, Weights] = {}
    runs, estimated, left_out = [], [], {}
    for config, strategy in planned:
        images = data[config.data.model_dump_json()]
        try:
            captioner, source = get_captioner(config.backbone, plugins=plugins)
            if config.backbone not in weights:
                weights[config.backbone] = _weights(config.backbone, captioner, source, missing, plugins)
            if images is not None and images.several_images:
                refuse_several_images(captioner, plugins)
            if issubclass(captioner, RemoteCaptioner):
                runs.append(_by_api(config, captioner, source, strategy, images, plugins))
            else:
                found = settled(config.backbone, strategy, plugins=plugins)
                runs.append(_here(config, captioner, source, found, images, speed, plugins))
                if not config.model.spreads and (problem := too_large(runs[-1], machine)):
                    missing[problem] = None
        except StrategyError as error:
            left_out[f"{config.strategy} on {config.backbone}"] = str(error)
        except UnknownNameError as error:
            missing[str(error)] = None
        except MedgraftError as error:
            missing[f"{config.backbone}: {error}"] = None
        else:
            estimated.append((config, strategy))
    named = {str(c): d for c, d in zip(suite.data, data.values(), strict=True)}
    counts = {name: None if d is None else {str(s): len(d.split(s)) for s in SPLITS} for name, d in named.items()}
    reports = {name: d.report for name, d in named.items() if d is not None}
    notes = {name: (*r.sentences(), *(f"Overlap: {leak}." for leak in r.leaks or ())) for name, r in reports.items()}
    here = {name for name, found in weights.items() if found.where in ("folder", "cached")}
    text = _text(planned, data, here, plugins, missing)
    not_probed: dict[str, str] = {}
    if probes:
        runs = probed_runs(estimated, runs, data, here, not_probed)
    loads = [run.load for run in runs if run.usage is None]
    validation = sum(count["validation"] for count in counts.values() if count)
    store = store_bytes(suite, data, here, plugins)
    grid = plan_grid(suite, loads, validation, store, fit(records, filter(None, loads)))
    rows = sum(run.seed == suite.seeds[0] and bool(run.trainable_parameters) for run in runs)
    return DryRun(
        suite.name, machine, speed, counts, notes, tuple(weights.values()), tuple(runs), left_out, tuple(missing),
        trials=rows * len(suite.tuning.factors) if suite.tuning else 0,
        timings=rows * suite.timing.repeats if suite.timing else 0,
        text=text,
        grid=grid,
        not_probed=not_probed,
    )  # fmt: skip


def _text(
    planned: Planned, data: Mapping[str, CaptionData | None], here: set[str], plugins: PluginManager, missing: dict[str, None]
) -> dict[str, tuple[str, ...]]:
    """See DryRun.text; `here` are the backbones whose files are on this machine."""
    found: dict[str, tuple[str, ...]] = {}
    for config, strategy in sorted(planned, key=lambda run: not run[1].trains):  # trained ones first
        name, examples = f"{config.backbone} on {config.data}", data[config.data.model_dump_json()]
        if name in found or examples is None or config.backbone not in here:
            continue
        try:
            found[name] = _sentences(config, examples.split("train") if strategy.trains else (), examples, plugins)
        except MedgraftError as error:
            missing[f"{config.backbone}: {error}"] = None
    return found


def _sentences(config: RunConfig, training: Sequence[Example], data: CaptionData, plugins: PluginManager) -> tuple[str, ...]:
    backbone = load_without_weights(config.backbone, plugins=plugins, image_size=config.image.size)
    text, references = planned_statistics(config, backbone, training, data.split(config.eval_split))
    lengths = [text.lengths()] if text.captions else []
    return tuple(dict.fromkeys([*lengths, *text.warnings(), references.references()]))


def _data(config: DataConfig, plugins: PluginManager, missing: dict[str, None]) -> CaptionData | None:
    try:
        return load_data(config, plugins=plugins)
    except UnknownNameError:
        raise
    except MedgraftError as error:
        found = config.path is not None and Path(config.path).expanduser().exists()
        missing[str(error) if found else f"{error} Give the data's folder with --set data.path=FOLDER."] = None
        return None


def _weights(
    name: str, captioner: type[Backbone] | type[RemoteCaptioner], source: str, missing: dict[str, None], plugins: PluginManager
) -> Weights:
    if issubclass(captioner, RemoteCaptioner):
        try:
            captioner.load(source)
        except MedgraftError as error:
            missing[str(error)] = None
        return Weights(name, "api", 0)
    if not Path(source).is_dir() and not is_cached(source):
        return Weights(name, "hub", _download_bytes(captioner, source, missing))
    for check in (_weight_files, load_without_weights):
        try:
            check(name, plugins=plugins)
        except MedgraftError as error:
            missing[f"{name}: {error}"] = None
    return Weights(name, "folder" if Path(source).is_dir() else "cached", 0)


def _weight_files(name: str, *, plugins: PluginManager) -> None:
    """Raise BackboneError unless the weight files of `NAME:SOURCE` are here and whole."""
    captioner, source = get_backbone(name, plugins=plugins)
    checkpoint_files(source, read_config(source, captioner.model_types))


def _download_bytes(captioner: type[Backbone], source: str, missing: dict[str, None]) -> int | None:
    """Bytes listed by the hub; if it does not answer, four bytes for each parameter of a published configuration."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(source, files_metadata=True, timeout=10).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in files}
        kinds = ("safetensors", "bin") if any(name.endswith(".safetensors") for name in sizes) else ("bin",)
        return sum(size for name, size in sizes.items() if name.endswith(f".{kinds[0]}"))
    except Exception as error:  # the hub's client, and HTTP clients below it, raise many kinds
        missing[f"The hub does not answer ({type(error).__name__}): weights that are not cached cannot be downloaded."] = None
    config = published_config(source)
    return None if config is None else 4 * sum(p.numel() for p in captioner.meta_model(config).parameters())


def _here(
    config: RunConfig, captioner: type[Backbone], source: str, strategy: Strategy, data: CaptionData | None, speed: float,
    plugins: PluginManager,
) -> RunEstimate:  # fmt: skip
    several = data.examples if data is not None and data.several_images else ()
    images = sum(len(example.images) for example in several) / len(several) if several else 1.0
    made = _estimate(config, captioner, source, strategy, plugins, images)
    steps = config.train.max_steps * config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    seen = None if data is None else int(len(CaptionPairs(data.split("train"))) * config.train.num_train_epochs)
    seen = steps if steps > 0 else seen
    captioned = None if data is None else len(data.split(config.eval_split))
    return RunEstimate(
        backbone=config.backbone,
        strategy=config.strategy,
        data=str(config.data),
        seed=config.seed,
        trainable_parameters=made.trainable_parameters if made else None,
        memory_bytes=made.memory_bytes if made else None,
        loading_bytes=made.loading_bytes if made else None,
        training_seconds=made.training_seconds(seen, speed) if made and seen is not None else None,
        captioning_seconds=made.captioning_seconds(captioned, speed) if made and captioned is not None else None,
        trained_images=seen if strategy.trains else 0,
        captioned_images=captioned,
    )


def _estimate(
    config: RunConfig, captioner: type[Backbone], source: str, strategy: Strategy, plugins: PluginManager, images: float = 1.0
) -> Estimate | None:
    """The estimate of a run on examples of so many `images`, None if its method cannot be applied without weights."""
    applied = apply_to_meta(config.backbone, strategy, plugins=plugins)
    sized = config_for_size(captioner, planning_config(source, captioner.model_types), config.image.size, plugins=plugins)
    base = _base(captioner, source, sized, strategy, config)
    return None if applied is None else estimate(base, applied, strategy, config, images)


def memory_needed(config: RunConfig, *, gpus: bool, plugins: PluginManager) -> float:
    """Bytes of the host's memory to ask for: a quarter more than the run's estimated peak, whose model may be on a GPU."""
    captioner, source = get_captioner(config.backbone, plugins=plugins)
    made = None
    if not issubclass(captioner, RemoteCaptioner):
        strategy = settled(
            config.backbone, get_strategy(config.strategy, config.strategy_options, plugins=plugins), plugins=plugins
        )
        made = _estimate(config, captioner, source, strategy, plugins)
    if made is None:
        return 2e9
    return 1.25 * (made.loading_bytes if gpus else max(made.memory_bytes, made.loading_bytes))


def _base(captioner: type[Backbone], source: str, shapes: PreTrainedConfig, strategy: Strategy, config: RunConfig) -> Base:
    """What is to be loaded; without files here, as if they were in fp32."""
    dtype, kept = hardware.compute_dtype(config.train.dtype), needs_fp32(captioner.anatomy, strategy)
    whole = sum(p.numel() for p in captioner.meta_model(shapes).parameters())
    if strategy.quantization != "none" or config.acceleration.kernels == "none":
        dtype = torch.float32
    try:
        size = sum(path.stat().st_size for path in checkpoint_files(source, shapes))
        half = half_weights(captioner, source, shapes, Held(dtype, kept))
    except (MedgraftError, OSError):
        return Base(captioner, shapes, 4 * whole, frozenset())
    return Base(captioner, shapes, size, frozenset(half))


def too_large(run: RunEstimate, machine: Hardware) -> str | None:
    """A sentence if a run needs more memory than this machine has in all."""
    gpu = bool(machine.accelerators)
    found = machine.memory_bytes or 0, torch.cuda.get_device_properties(0).total_memory if gpu else 0
    for needed, has, what in (
        (run.loading_bytes, found[0], "loading"), (run.memory_bytes, found[1] if gpu else found[0], "the run"),
    ):  # fmt: skip
        if needed is not None and needed > has:
            return (
                f"{run.strategy} on {run.backbone}: {what} needs {needed / 1e9:.1f} GB of memory, and this machine has "
                f"{has / 1e9:.1f}. Try strategy.quantization=nf4, --dtype bf16, a smaller batch or a smaller model."
            )
    return None


def _by_api(
    config: RunConfig,
    captioner: type[RemoteCaptioner],
    source: str,
    strategy: Strategy,
    data: CaptionData | None,
    plugins: PluginManager,
) -> RunEstimate:
    refuse_training(strategy)
    captioner.check_generation(config.generation)
    refuse_size(captioner, config.image.size, plugins=plugins)
    usage = None
    if data is not None:
        sizes = [open_image(example.image).size for example in data.split(config.eval_split)]
        prompt = prompt_for(captioner, config.train.prompt)
        usage = captioner.estimate(source, sizes, prompt=prompt, options=config.generation)
    return RunEstimate(config.backbone, config.strategy, str(config.data), config.seed, 0, None, None, 0.0, None, usage)
