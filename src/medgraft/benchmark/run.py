"""One run, from settings to record: prepare, train, package, caption, score."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medgraft import hardware
from medgraft.adapter import IN_RUN, Manifest, SeenInTraining, TrainedOn
from medgraft.adapter.base_weights import packed
from medgraft.adapter.saving import adapter_bytes, in_place_digests, save_weights, update_manifest
from medgraft.backbones import AnyBackbone, Backbone, prompt_for
from medgraft.benchmark.before_training import Run, planned, prepare_model, read_data
from medgraft.benchmark.evaluation import Captioned, Evaluation, caption_examples, score_captions, seen_in_training
from medgraft.benchmark.forgetting import base_captions, forgetting
from medgraft.benchmark.record import RECORD, LeftOut, Record, write_record
from medgraft.benchmark.recording import about_run, feature_use, run_id
from medgraft.benchmark.run_folder import CHECKPOINTS, Resume, check_out, remove_results, replace_package
from medgraft.benchmark.timing import quartiles
from medgraft.benchmark.validation import Validation
from medgraft.config import RunConfig
from medgraft.data import data_fingerprint
from medgraft.inference import Captioner, captioner_for
from medgraft.plugin import PluginManager
from medgraft.prepare import Prepared
from medgraft.saliency import write_maps
from medgraft.scoring import write_captions
from medgraft.seeds import seeded
from medgraft.text_statistics import TextStatistics
from medgraft.token_counts import logged_statistics
from medgraft.training import Checkpoints, TrainResult, check_sharded, check_trackers, fit, identity_of
from medgraft.types import SPLITS, CaptionData

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """A finished run: its record, its captions, the model and the data, still in memory."""

    record: Record
    evaluation: Evaluation | None
    backbone: AnyBackbone
    data: CaptionData


def execute(
    config: RunConfig,
    out: Path,
    *,
    plugins: PluginManager,
    resume: Resume = False,
    overwrite: bool = False,
    evaluate: bool = True,
    checkpoints: bool = True,
) -> RunResult:
    """Run `config`; write `predictions.json` and `record.json` to `out`, and the package of what was trained to `out/adapter`.

    With `resume` training goes on from the last whole checkpoint in `out`; without one that is an error, but with "auto" a new
    beginning. Several processes train and caption together, and the main one writes. Errors pass through; see `failed_record`.
    """
    check_trackers(config.train.report_to)
    run = planned(config, out, plugins)
    config = run.config
    check_sharded(config, run.strategy, evaluate=evaluate)
    whole = check_out(out, config, trains=run.strategy.trains, resume=resume, overwrite=overwrite)
    with seeded(config.seed):
        data, fingerprint = read_data(run)
        validation = Validation.of(config, data, run.plugins) if run.strategy.trains else None
        seen = seen_in_training(run.start, config.data, data.split(config.eval_split)) if run.start else None
        model = prepare_model(run, data)
        with run.clock.phase("read_data"):
            text = logged_statistics(config, model.backbone, data, trains=run.strategy.trains)
        prompt, batch = config.train.prompt, config.train.per_device_eval_batch_size
        captioner = captioner_for(model.backbone, prompt=prompt, dtype=model.dtype, batch_size=batch, features=model.features)
        with run.clock.phase("forgetting"):
            general = base_captions(captioner, model.applied, config.forgetting) if evaluate else None
        limit, keep = config.train.save_total_limit, config.train.save_final_state
        best = validation.best(captioner) if validation else None
        written = checkpoints and not hardware.is_sharded()
        saved = Checkpoints(out / CHECKPOINTS, whole, resume == "auto", written, limit, keep, best=best)
        trained = _train(run, data, model, saved)
        package = _package(run, data, model, trained)
        examples = data.split(config.eval_split) if evaluate else ()
        with run.clock.phase("generation"):
            captioned = caption_examples(captioner, examples, config.generation)
        evaluation = _score(run, captioner, captioned)
        with run.clock.phase("forgetting"):
            lost = forgetting(captioner, general)
        package = _add_scores(run, package, evaluation, lost, seen)
    record = _record(run, data, fingerprint, model, _Outcome(text, trained, package, evaluation, captioner, lost, seen))
    if hardware.is_main_process():
        write_record(record, out, RECORD)
    saved.finish()
    return RunResult(record, evaluation, model.backbone, data)


@dataclass(frozen=True)
class _Trained:
    """The training result; `base` holds the digests of the parameters trained in place, from before training."""

    result: TrainResult
    base: dict[str, str]


def _train(run: Run, data: CaptionData, model: Prepared, checkpoints: Checkpoints) -> _Trained | None:
    """Train the model; None if the strategy trains nothing."""
    backbone, applied = model.backbone, model.applied
    if not isinstance(backbone, Backbone) or applied is None or not run.strategy.trains:
        return None
    with run.clock.phase("digests"):
        base = in_place_digests(applied, model.base_digests)
        base |= dict.fromkeys(run.start.in_place() if run.start else (), "changed before this run")
        identity = identity_of(run.config, model, data, run.start.digest if run.start else None)
    checkpoints = replace(checkpoints, identity=identity)
    return _Trained(fit(backbone, applied, run.config, data, checkpoints, run.clock, model.features), base)


def _package(run: Run, data: CaptionData, model: Prepared, trained: _Trained | None) -> Manifest | None:
    """Write the adapter package in the main process, and return its manifest; removes what an earlier run left."""
    if not hardware.is_main_process():
        return None
    remove_results(run.out)
    applied = model.applied
    if trained is None or applied is None:
        return None

    def write_files(folder: Path) -> tuple[str, ...]:
        trained_on = TrainedOn.of(data.split("train"))
        trained_on = trained_on.after(run.start.trained_on) if run.start else trained_on
        return (*save_weights(folder, applied, trained.base), trained_on.write(folder))

    with run.clock.phase("package"):
        return replace_package(run.out, _manifest(run, data, model, trained.result), write_files)


def _manifest(run: Run, data: CaptionData, model: Prepared, result: TrainResult) -> Manifest:
    config, backbone, applied = run.config, model.backbone, model.applied
    assert isinstance(backbone, Backbone) and applied is not None
    trained: dict[str, Any] = {
        "steps": len(result.losses),
        "epochs": result.epochs,
        "seconds": run.clock.training,
        "images": len(data.split("train")),
        "learning_rate": config.train.learning_rate or run.strategy.learning_rate,
        **({"learning_rates": dict(result.learning_rates)} if result.learning_rates else {}),
        "trainable_parameters": applied.trainable_parameters,
        "matched_modules": len(applied.matched_modules),
        "in_place": len(applied.direct),
        "parts": list(backbone.anatomy.parts),
        "model_class": backbone.model_class,
        "final_loss": result.losses[-1] if result.losses else None,
        **({"chosen": asdict(result.chosen)} if result.chosen else {}),
        "settings": config.train.model_dump(mode="json"),
        "hardware": str(hardware.describe()),
        **({"processes": hardware.process_count()} if hardware.process_count() > 1 else {}),
    }
    fingerprint = data_fingerprint(data.split("train", "validation"))
    read_by = config.data.model_dump(mode="json", exclude={"path", "root"}, exclude_defaults=True)
    return Manifest(
        backbone=config.backbone,
        base_fingerprint=model.base_fingerprint,
        base_tensors=packed(model.base_digests),
        strategy=config.strategy,
        strategy_settings=applied.strategy,
        data={"options": {}, **read_by, "fingerprint": fingerprint},
        prompt=prompt_for(backbone, config.train.prompt),
        max_text_tokens=config.train.max_text_tokens,
        image_size=config.image.size,
        dtype=hardware.dtype_name(model.dtype),
        acceleration=model.acceleration.installed,
        seed=config.seed,
        training=trained,
        metrics={},
        evaluation={"generation": config.generation.recorded()},
        versions=hardware.versions(),
        lineage=run.start.lineage() if run.start else (),
        files={},
    )


def _score(run: Run, captioner: Captioner, captioned: Captioned) -> Evaluation | None:
    """Score the captions; the main process writes them with their saliency maps. None if there are none."""
    if not captioned.generated.captions:
        return None
    evaluation = score_captions(captioner, captioned, run.config, plugins=run.plugins, clock=run.clock)
    if not hardware.is_main_process():
        return evaluation
    with run.clock.phase("package"):
        write_captions(evaluation.captions, run.out)
        if evaluation.maps:
            write_maps(evaluation.maps, run.out)
    return evaluation


def _add_scores(
    run: Run, package: Manifest | None, evaluation: Evaluation | None, lost: float | None, seen: SeenInTraining | None
) -> Manifest | None:
    """Add the scores to the package's manifest."""
    if package is None or evaluation is None:
        return package
    done: dict[str, Any] = {"images": len(evaluation.predictions), "split": run.config.eval_split}
    done |= {} if lost is None else {"forgetting": lost}
    done |= {"seen_in_training": str(seen)} if seen else {}
    with run.clock.phase("package"):
        done = package.evaluation | done
        changed = package.model_copy(update={"metrics": dict(evaluation.metrics), "evaluation": done})
        return update_manifest(run.out / IN_RUN, changed)


@dataclass(frozen=True)
class _Outcome:
    text: TextStatistics | None
    trained: _Trained | None
    package: Manifest | None
    evaluation: Evaluation | None
    captioner: Captioner
    forgetting: float | None
    seen: SeenInTraining | None


def _record(run: Run, data: CaptionData, fingerprint: str, model: Prepared, outcome: _Outcome) -> Record:
    config, clock, applied, evaluation = run.config, run.clock, model.applied, outcome.evaluation
    result, start = outcome.trained.result if outcome.trained else None, run.start.digest if run.start else None
    steps = len(result.losses) if result else 0
    return Record(
        run_id=run_id(config, run.strategy, fingerprint, model.base_fingerprint, hardware.versions(), start),
        status="ok",
        training_seconds=clock.training if result else 0.0,
        time_to_first_step=clock.time_to_first_step,
        processes=hardware.process_count(),
        steps=steps,
        seconds_per_step=clock.steps / steps if steps else None,
        step_quartiles=quartiles(result.step_seconds) if result else None,
        learning_rates=dict(result.learning_rates) or None if result else None,
        step_flops=result.step_flops if result else None,
        energy_joules=result.energy_joules if result else None,
        skipped_steps=result.skipped_steps if result else None,
        train_loss=result.losses if result else (),
        validation_loss=result.validation_losses if result else (),
        chosen=result.chosen if result else None,
        trainable_parameters=applied.trainable_parameters if applied else 0,
        total_parameters=applied.total_parameters if applied else None,
        matched_modules=applied.matched_modules if applied else (),
        quantized_modules=len(applied.quantized) if applied else 0,
        quantization=run.strategy.quantization if applied else None,
        peak_memory_bytes=evaluation.peak_memory_bytes if evaluation else hardware.largest(hardware.peak_memory_bytes()),
        adapter_bytes=adapter_bytes(outcome.package) if outcome.package else 0,
        **(evaluation.for_record() if evaluation else {}),
        images={split: len(data.split(split)) for split in SPLITS},
        data_report=LeftOut.of(data.report),
        leaks=None if data.report.leaks is None else tuple(replace(leak, examples=()) for leak in data.report.leaks),
        text=outcome.text,
        data_fingerprint=fingerprint,
        base_fingerprint=model.base_fingerprint,
        start=start,
        seen_in_training=outcome.seen,
        phase_seconds=dict(clock.seconds),
        features=feature_use(model.prefix, model.features),
        forgetting=outcome.forgetting,
        acceleration=model.acceleration.installed,
        usage=outcome.captioner.usage(),
        **about_run(config),
    )
