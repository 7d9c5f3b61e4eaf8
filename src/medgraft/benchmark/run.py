"""One run, from its config to its record: load, apply, train, package, caption, score."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import transformers

from medgraft import hardware
from medgraft.adapter import MANIFEST, Manifest, adapter_bytes, finish_package, in_place_digests, save_weights
from medgraft.backbones import Backbone, RemoteCaptioner, get_captioner, prompt_for
from medgraft.benchmark.captions import write_captions
from medgraft.benchmark.evaluation import Evaluation, evaluate_examples
from medgraft.benchmark.record import Record, run_id
from medgraft.config import TIMING_WARMUP_STEPS, RunConfig
from medgraft.data import data_fingerprint, load_data
from medgraft.errors import AdapterError, DataError
from medgraft.features import CachedFeatures, ReusablePrefix
from medgraft.heap import kept_heap
from medgraft.plugin import PluginManager
from medgraft.prepare import Prepared, prepare, uses_bf16
from medgraft.quiet import quiet_libraries
from medgraft.saliency import write_maps
from medgraft.strategies import Strategy, get_strategy
from medgraft.training import Clock, TrainResult, build_features, fit
from medgraft.types import SPLITS, CaptionData, Example, Split

CHECKPOINTS = ".medgraft-checkpoints"


@dataclass(frozen=True)
class RunResult:
    """A finished run: its record, its captions, and the model that made them, still in memory."""

    record: Record
    evaluation: Evaluation | None
    backbone: Backbone | RemoteCaptioner


@kept_heap()
def execute(
    config: RunConfig,
    out: Path,
    *,
    plugins: PluginManager,
    resume: bool = False,
    overwrite: bool = False,
    evaluate: bool = True,
    checkpoints: bool = True,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> RunResult:
    """Do one run and leave its adapter package (unless nothing is trained) and `predictions.json` in `out`.

    Under accelerate or torchrun every process trains, and the main one alone packages, captions and writes.
    `say` is told in a line each what was loaded and what will be trained. Errors pass through; `failed_record` makes a
    record of them.
    """
    clock = Clock()
    hardware.device()  # before anything is loaded, so that each process loads onto its own
    transformers.set_seed(config.seed)
    quiet_libraries()
    strategy = get_strategy(config.strategy, config.strategy_options, plugins=plugins)
    if not overwrite:
        _check_out(out, strategy, resume)
    with clock.phase("load"):
        loaded = _load(config, strategy, plugins)
    data, model = loaded.data, loaded.model
    backbone, applied, cached, prefix = model.backbone, model.applied, model.features, model.prefix
    say(_data_line(data))
    say(f"{config.strategy}: {applied.summary()}" if applied and strategy.trains else "zero-shot: nothing is trained")
    result = manifest = evaluation = None
    main = hardware.is_main_process()
    if prefix is not None:
        with clock.phase("features"):
            build_features(model, config, _seen(config, strategy, data), progress=progress)
        say(f"features: {prefix}" + (f"; {cached.found} found, {cached.built} built" if cached and strategy.trains else ""))
        if cached and cached.store.problem:
            say(cached.store.problem)
    if isinstance(backbone, Backbone) and applied is not None and strategy.trains:
        with clock.phase("package"):
            untrained = in_place_digests(applied)
        result = fit(
            backbone, applied, config, data.split("train"), data.split("validation"), out / CHECKPOINTS, clock,
            resume=resume, checkpoints=checkpoints, progress=progress, cached=cached,
        )  # fmt: skip
        if main:
            with clock.phase("package"):
                files = save_weights(out, applied, untrained)
                manifest = finish_package(out, _manifest(config, model, data, result, clock), files)
    if evaluate and main:
        evaluation = _evaluate(config, backbone, data, plugins, clock, progress, cached)
    if evaluation is not None:
        with clock.phase("package"):
            manifest = _keep(evaluation, config, out, manifest)
    record = _record(config, strategy, loaded, result, manifest, evaluation, clock, _used_features(prefix, cached))
    return RunResult(record, evaluation, backbone)


def _seen(config: RunConfig, strategy: Strategy, data: CaptionData) -> tuple[Example, ...]:
    """The examples that training looks at more than once."""
    if not strategy.trains:
        return ()
    return (*data.split("train"), *(data.split("validation") if config.train.eval_during_training else ()))


@dataclass(frozen=True)
class _Loaded:
    """What a run starts from."""

    data: CaptionData
    fingerprint: str  # of the data
    model: Prepared


def _load(config: RunConfig, strategy: Strategy, plugins: PluginManager) -> _Loaded:
    get_captioner(config.backbone, plugins=plugins)  # a misspelt name is told before the data are read
    data = load_data(config.data, plugins=plugins, splits=needed_splits(config, strategy))
    if strategy.trains and not data.split("train"):
        raise DataError(f"{config.data.name}:{config.data.path} has no training images.")
    return _Loaded(data, data_fingerprint(data.examples), prepare(config, plugins=plugins, strategy=strategy))


def _keep(evaluation: Evaluation, config: RunConfig, out: Path, manifest: Manifest | None) -> Manifest | None:
    """Write the captions to `out`, and the scores into the package's manifest if there is one."""
    write_captions(evaluation.captions, out)
    if evaluation.maps:
        write_maps(evaluation.maps, out)
    if manifest is None:
        return None
    done: dict[str, Any] = {"images": len(evaluation.predictions), "split": config.eval_split}
    done |= {"generation": config.generation.model_dump()}
    manifest = manifest.model_copy(update={"metrics": dict(evaluation.metrics), "evaluation": done})
    return finish_package(out, manifest, tuple(manifest.files))


def _used_features(prefix: ReusablePrefix | None, cached: CachedFeatures | None) -> dict[str, str | int | None] | None:
    """What the record tells of the feature store."""
    if prefix is None:
        return None
    seam = prefix.seam.name if prefix.seam and cached else None
    return {
        "seam": seam,
        "reason": prefix.reason,
        "found": cached.found if cached else 0,
        "built": cached.built if cached else 0,
    }


def _check_out(out: Path, strategy: Strategy, resume: bool) -> None:
    """AdapterError if writing to `out` could replace what somebody made."""
    if out.exists() and not out.is_dir():
        raise AdapterError(f"{out} is a file; --out names a folder.")
    if strategy.trains and (out / MANIFEST).exists():
        raise AdapterError(f"{out} already holds an adapter. Name another folder, or add --overwrite to replace it.")
    if strategy.trains and out.is_dir() and any(out.iterdir()) and not (out / CHECKPOINTS).is_dir():
        raise AdapterError(f"{out} is not empty and holds no training of ours. Name a new folder, or add --overwrite.")
    if resume and not (out / CHECKPOINTS).is_dir():
        raise AdapterError(f"{out} holds no checkpoint to resume from. Train without --resume.")


def needed_splits(config: RunConfig, strategy: Strategy) -> tuple[Split, ...]:
    """The splits that a run reads: all of them if it trains, else the one that it captions."""
    return SPLITS if strategy.trains else (config.eval_split,)


def failed_record(config: RunConfig, error: str) -> Record:
    """The record of a run that could not be done. Its id comes from the config alone, as data and base may be missing."""
    versions = hardware.versions()
    return Record(
        run_id=run_id(config, None, "", "", versions), backbone=config.backbone, strategy=config.strategy,
        data=config.data.name, seed=config.seed, status="failed", config=config.model_dump(mode="json"), versions=versions,
        hardware=hardware.describe(), git=hardware.git_revision(), finished=_now(), error=error,
    )  # fmt: skip


def _evaluate(
    config: RunConfig,
    backbone: Backbone | RemoteCaptioner,
    data: CaptionData,
    plugins: PluginManager,
    clock: Clock,
    progress: bool,
    cached: CachedFeatures | None,
) -> Evaluation | None:
    examples = data.split(config.eval_split)
    if not examples:
        return None
    return evaluate_examples(
        backbone, examples, generation=config.generation, prompt=config.train.prompt, metrics=config.metrics,
        batch_size=config.train.per_device_eval_batch_size, bf16=uses_bf16(config), plugins=plugins, clock=clock,
        progress=progress, saliency=config.saliency, cached=cached,
    )  # fmt: skip


def _manifest(config: RunConfig, model: Prepared, data: CaptionData, result: TrainResult, clock: Clock) -> Manifest:
    backbone, applied = model.backbone, model.applied
    assert isinstance(backbone, Backbone) and applied is not None
    strategy: Strategy = applied.strategy
    machine = hardware.describe()
    training: dict[str, Any] = {
        "steps": len(result.losses),
        "seconds": clock.training,
        "images": len(data.split("train")),
        "learning_rate": config.train.learning_rate or strategy.learning_rate,
        "trainable_parameters": applied.trainable_parameters,
        "matched_modules": len(applied.matched_modules),
        "in_place": len(applied.direct),
        "parts": list(backbone.anatomy.parts),
        "final_loss": result.losses[-1] if result.losses else None,
        "settings": config.train.model_dump(mode="json"),
        "hardware": ", ".join([*map(str, machine["accelerators"]), f"{machine['cpu']}, {machine['threads']} threads"]),  # type: ignore[call-overload]
    }
    examples = (*data.split("train"), *data.split("validation"))
    return Manifest(
        backbone=config.backbone,
        base_fingerprint=model.base_fingerprint,
        strategy=config.strategy,
        strategy_settings=strategy,
        data={"name": config.data.name, "options": config.data.options, "fingerprint": data_fingerprint(examples)},
        prompt=prompt_for(backbone, config.train.prompt),
        max_text_tokens=config.train.max_text_tokens,
        bf16=uses_bf16(config),
        acceleration=model.acceleration.installed,
        seed=config.seed,
        training=training,
        metrics={},
        evaluation={},
        versions=hardware.versions(),
        files={},
    )


def _record(
    config: RunConfig, strategy: Strategy, loaded: _Loaded, result: TrainResult | None, manifest: Manifest | None,
    evaluation: Evaluation | None, clock: Clock, features: dict[str, str | int | None] | None,
) -> Record:  # fmt: skip
    data, model = loaded.data, loaded.model
    applied, base = model.applied, model.base_fingerprint
    versions, fingerprint = hardware.versions(), loaded.fingerprint
    steps = len(result.losses) if result else 0
    return Record(
        run_id=run_id(config, strategy, fingerprint, base, versions),
        backbone=config.backbone,
        strategy=config.strategy,
        data=config.data.name,
        seed=config.seed,
        status="ok",
        training_seconds=clock.training if result else 0.0,
        steps=steps,
        seconds_per_step=clock.steps / steps if steps else None,
        step_quartiles=_quartiles(result.step_seconds) if result else None,
        step_flops=result.step_flops if result else None,
        energy_joules=result.energy_joules if result else None,
        train_loss=result.losses if result else (),
        validation_loss=result.validation_losses if result else (),
        trainable_parameters=applied.trainable_parameters if applied else 0,
        total_parameters=applied.total_parameters if applied else None,
        matched_modules=applied.matched_modules if applied else (),
        quantized_modules=len(applied.quantized) if applied else 0,
        peak_memory_bytes=evaluation.peak_memory_bytes if evaluation else hardware.peak_memory_bytes(),
        adapter_bytes=adapter_bytes(manifest) if manifest else 0,
        **(evaluation.for_record() if evaluation else {}),
        images={split: len(data.split(split)) for split in ("train", "validation", "test")},
        data_report={
            "missing": len(data.report.missing),
            "corrupt": len(data.report.corrupt),
            "uncaptioned": data.report.uncaptioned,
        },
        data_fingerprint=fingerprint,
        base_fingerprint=base,
        phase_seconds=dict(clock.seconds),
        features=features,
        acceleration=model.acceleration.installed,
        usage=asdict(model.backbone.usage()) if isinstance(model.backbone, RemoteCaptioner) else None,
        config=config.model_dump(mode="json"),
        versions=versions,
        hardware=hardware.describe(),
        git=hardware.git_revision(),
        finished=_now(),
    )


def _quartiles(step_seconds: Sequence[float]) -> tuple[float, float, float] | None:
    """None if too few steps are left without the first ones."""
    if len(step_seconds) < TIMING_WARMUP_STEPS + 4:  # as many as TimingConfig asks for
        return None
    low, median, high = statistics.quantiles(step_seconds[TIMING_WARMUP_STEPS:], n=4)
    return low, median, high


def _data_line(data: CaptionData) -> str:
    counts = ", ".join(f"{len(data.split(s))} {s}" for s in ("train", "validation", "test") if data.split(s))
    return f"{data.name}: {counts} ({data.report})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
