"""The record of a run: every measurement, under names that stay stable; `None` for unknown values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from medgraft.adapter import SeenInTraining
from medgraft.backbones.remote import Usage
from medgraft.config import SECTIONS, RunConfig
from medgraft.disk import write_whole
from medgraft.errors import ConfigError
from medgraft.machine import Hardware
from medgraft.redaction import redacted_json
from medgraft.strategies import Quantization
from medgraft.strict_model import StrictModel
from medgraft.text_statistics import GenerationStatistics, TextStatistics
from medgraft.train_config import with_dtype
from medgraft.training.chosen_weights import ChosenWeights
from medgraft.types import DataReport, Leak, Split

RECORD = "record.json"  # in the folder of a single run
BASELINE = "baseline"  # the backbone's name in a baseline's record
BASELINES = "baselines"  # in the folder of a single run: its baselines, laid out as the results of a suite

SCHEMA_VERSION = 2  # 1: settings as plain dictionaries, no `schema_version`


class FeatureUse(StrictModel):
    """The seam at which stored features entered and why that one; the numbers of features found and built by all processes."""

    seam: str | None
    reason: str
    found: int = 0
    built: int = 0


class LeftOut(StrictModel):
    """Numbers of images that the data set lists and that were left out, and of rows that could not be read.

    `leaking` ones were dropped because a later split has their like.
    """

    missing: int = 0
    corrupt: int = 0
    uncaptioned: int = 0
    bad_rows: int = 0
    leaking: int = 0

    @classmethod
    def of(cls, report: DataReport) -> LeftOut:
        """The counts of a report."""
        return cls(
            missing=len(report.missing), corrupt=len(report.corrupt), uncaptioned=report.uncaptioned,
            bad_rows=len(report.bad_rows), leaking=report.leaking,
        )  # fmt: skip


class Tuning(StrictModel):
    """The learning rate chosen, and (rate, score, seconds) of every trial; the score is None if the trial failed."""

    score: str
    split: Split = "validation"
    chosen: float
    tried: tuple[tuple[float, float | None, float], ...]
    seconds: float

    @property
    def at_edge(self) -> str | None:
        """`highest` or `lowest` if the chosen rate is that of several tried, so that a better one may lie beyond; else None."""
        rates = [rate for rate, *_ in self.tried]
        edges = {"highest": max(rates), "lowest": min(rates)} if len(rates) > 1 else {}
        return next((name for name, rate in edges.items() if rate == self.chosen), None)


class Record(StrictModel):
    """One run. Times are in seconds, sizes in bytes; `train_loss` has one value for every optimiser step.

    `training_seconds` is the time to obtain the weights: building features and training steps, without loading, validation,
    checkpoints and captioning, which are in `phase_seconds`. On a CPU `phase_seconds` also splits steps into waiting for data,
    forward, backward and optimiser, with the rest as `train`. `time_to_first_step` runs from the start of the run to the end
    of its first optimiser step. `quantization` is that of the base, stored so or quantised on loading. `acceleration` names
    the installed kernels. `intervals` are the 95 % intervals of `metrics` over groups of test images, `signatures` the
    metrics' settings, `unavailable` the reasons why metrics are missing, `notes` what metrics say about their scores,
    `collapse` signs of captions that ignore the image (see medgraft.benchmark.evaluation). `leaks` are those between splits,
    without ids; None if they are unknown.
    `skipped_steps` are those in fp16 whose gradients overflowed. `chosen` says how a score chose the weights. `text` counts
    captions that training truncated and unknown tokens, `generated` captions that were cut off. `forgetting` is the rise, in
    nats per token, of the loss on the base's own captions of general images. `start` is the digest of the adapter that
    training went on from, and `seen_in_training` how many of the scored images that adapter was trained on. `usage` counts
    requests, tokens and cost of a model behind an API. `step_flops` are the FLOPs of one process's first batch in matrix
    products, forwards and backwards, as torch counts them (None with a quantised base); `energy_joules` is the steps' energy
    by the machine's counters. `processes` trained together (None in earlier records: one). `step_quartiles` are of the seconds
    of single steps without the warm-up steps. `learning_rates` are the peak rates by part (with LoRA+ those of `B` too) where
    there are several. A failed run has an `error` of one line and a `traceback`. `disturbed`: another harness on the same
    results folder did a run on this machine at the same time. `removed_settings` holds, by SECTION.KEY, settings of older
    versions that were on.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    backbone: str
    strategy: str
    data: str
    seed: int
    status: Literal["ok", "failed"]
    training_seconds: float | None = None
    time_to_first_step: float | None = None
    processes: int | None = None
    steps: int | None = None
    seconds_per_step: float | None = None
    step_quartiles: tuple[float, float, float] | None = None
    learning_rates: dict[str, float] | None = None
    step_flops: int | None = None
    energy_joules: float | None = None
    skipped_steps: int | None = None
    train_loss: tuple[float, ...] | None = None
    validation_loss: tuple[tuple[int, float], ...] | None = None
    chosen: ChosenWeights | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    matched_modules: tuple[str, ...] | None = None
    quantized_modules: int | None = None
    quantization: Quantization | None = None
    peak_memory_bytes: int | None = None
    adapter_bytes: int | None = None
    adapter: str | None = None
    metrics: dict[str, float] | None = None
    intervals: dict[str, tuple[float, float]] | None = None
    collapse: dict[str, float] | None = None
    signatures: dict[str, str] | None = None
    unavailable: dict[str, str] | None = None
    notes: tuple[str, ...] | None = None
    images: dict[Split, int] | None = None
    data_report: LeftOut | None = None
    leaks: tuple[Leak, ...] | None = None
    text: TextStatistics | None = None
    generated: GenerationStatistics | None = None
    forgetting: float | None = None
    data_fingerprint: str | None = None
    base_fingerprint: str | None = None
    start: str | None = None
    seen_in_training: SeenInTraining | None = None
    phase_seconds: dict[str, float] | None = None
    features: FeatureUse | None = None
    acceleration: tuple[str, ...] | None = None
    usage: Usage | None = None
    tuning: Tuning | None = None
    config: RunConfig
    removed_settings: dict[str, JsonValue] = Field(default_factory=dict)
    versions: dict[str, str | None]
    hardware: Hardware
    git: str | None = None
    finished: str | None = None
    disturbed: bool | None = None
    error: str | None = None
    traceback: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_any_version(cls, values: Any) -> Any:
        """Convert records of older versions to this one."""
        if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
            return values
        written = values.get("schema_version", 1)
        if not isinstance(written, int) or written > SCHEMA_VERSION:
            raise ValueError(f"schema version {written}, this medgraft reads up to {SCHEMA_VERSION}; install a newer medgraft")
        config, removed = _without_removed(values["config"])
        removed = {**values.get("removed_settings", {}), **removed}
        return {**values, "schema_version": SCHEMA_VERSION, "config": config, "removed_settings": removed}

    @property
    def settings(self) -> str:
        """All settings of the run except its seed, as JSON: runs with equal settings differ by chance alone."""
        config = self.config.model_dump(mode="json", exclude={"seed"})
        return json.dumps([config, self.removed_settings, self.processes or 1], sort_keys=True)


def _without_removed(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Current settings, and removed ones that were on, by SECTION.KEY."""
    current, removed = dict(config), dict[str, Any]()
    for section in SECTIONS:
        known = type(RunConfig.model_fields[section].default).model_fields
        values = with_dtype(config.get(section)) if section == "train" else config.get(section)
        if isinstance(values, dict):
            current[section] = {key: value for key, value in values.items() if key in known}
            removed |= {f"{section}.{key}": value for key, value in values.items() if key not in known and value}
    return current, removed


def write_record(record: Record, folder: Path, name: str | None = None) -> Path:
    """Write `<run_id>.json`, or `name`, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{record.run_id}.json")
    write_whole(path, redacted_json(record.model_dump_json(indent=1)) + "\n")
    return path


def read_record(path: Path) -> Record:
    """Read a record from a file; ConfigError if the file is not a record."""
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}" if where else first["msg"]
        raise ConfigError(f"{path} is not a medgraft record: {why}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a medgraft record: {error}") from None
