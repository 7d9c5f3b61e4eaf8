"""The record of a run: everything measured, under names that are a contract; `None` for what is unknown."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from medgraft.backbones import Usage
from medgraft.config import SECTIONS, RunConfig
from medgraft.errors import ConfigError
from medgraft.hardware import Hardware
from medgraft.strategies import Strategy
from medgraft.strict_model import StrictModel
from medgraft.types import Split

RECORD = "record.json"  # in the folder of a single run


SCHEMA_VERSION = 2  # 1: settings as plain dictionaries, no `schema_version`


class FeatureUse(StrictModel):
    """At which seam stored features came in and why there, and how many images' features were found and built."""

    seam: str | None
    reason: str
    found: int = 0
    built: int = 0


class LeftOut(StrictModel):
    """Images that the data set lists and that were left out."""

    missing: int = 0
    corrupt: int = 0
    uncaptioned: int = 0


class Tuning(StrictModel):
    """The learning rate chosen, and (rate, score, seconds) of each that was tried, the score None if the try failed."""

    score: str
    split: Split = "validation"
    chosen: float
    tried: tuple[tuple[float, float | None, float], ...]
    seconds: float


class Record(StrictModel):
    """One run. Times in seconds, sizes in bytes; `train_loss` has one value for every optimiser step.

    `training_seconds` is what one waits for to have the weights: building features and the steps, without loading,
    validation, checkpoints and captioning, which are in `phase_seconds`; there, on a CPU, steps are split into waiting for
    data, forward, backward and optimiser, with the rest as `train`. `time_to_first_step` is from the start of the run to the
    end of its first optimiser step; `acceleration` names the kernels that the model had. `intervals` are those of `metrics`
    at 95 % over groups of test images, `signatures` the metrics' settings, `unavailable` why some could not be computed,
    `collapse` signs of captions
    that ignore the image (see medgraft.benchmark.evaluation). `usage` is what a model behind an API was asked: requests,
    tokens, cost. `step_flops` are the floating-point operations of the products of the first batch, forwards and backwards, as
    torch counts them (not with a quantised base), `energy_joules` what the machine's counters say that the steps took.
    `step_quartiles` are of the seconds of single steps, the first ones left out. A failed run has its `error` in one line,
    and the `traceback`. `removed_settings` are those of an older version that are no more, by SECTION.KEY, where they were on.
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
    steps: int | None = None
    seconds_per_step: float | None = None
    step_quartiles: tuple[float, float, float] | None = None
    step_flops: int | None = None
    energy_joules: float | None = None
    train_loss: tuple[float, ...] | None = None
    validation_loss: tuple[tuple[int, float], ...] | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    matched_modules: tuple[str, ...] | None = None
    quantized_modules: int | None = None
    peak_memory_bytes: int | None = None
    adapter_bytes: int | None = None
    adapter: str | None = None
    metrics: dict[str, float] | None = None
    intervals: dict[str, tuple[float, float]] | None = None
    collapse: dict[str, float] | None = None
    signatures: dict[str, str] | None = None
    unavailable: dict[str, str] | None = None
    images: dict[Split, int] | None = None
    data_report: LeftOut | None = None
    data_fingerprint: str | None = None
    base_fingerprint: str | None = None
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
    error: str | None = None
    traceback: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_any_version(cls, values: Any) -> Any:
        """Records of older versions become those of this one."""
        if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
            return values
        written = values.get("schema_version", 1)
        if written > SCHEMA_VERSION:
            raise ValueError(f"schema version {written}, this medgraft reads up to {SCHEMA_VERSION}; install a newer one")
        config, removed = _without_removed(values["config"])
        removed = {**values.get("removed_settings", {}), **removed}
        return {**values, "schema_version": SCHEMA_VERSION, "config": config, "removed_settings": removed}

    @property
    def settings(self) -> str:
        """All that the run was asked to do but its seed: runs with the same settings differ by chance alone."""
        return json.dumps([self.config.model_dump(mode="json", exclude={"seed"}), self.removed_settings], sort_keys=True)


def _without_removed(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings as they are today, and those that are no more, by SECTION.KEY, where they were on."""
    kept, removed = dict(config), dict[str, Any]()
    for section in SECTIONS:
        known = type(RunConfig.model_fields[section].default).model_fields
        values = config.get(section)
        if isinstance(values, dict):
            kept[section] = {key: value for key, value in values.items() if key in known}
            removed |= {f"{section}.{key}": value for key, value in values.items() if key not in known and value}
    return kept, removed


def run_id(
    config: RunConfig,
    strategy: Strategy | None,
    data_fingerprint: str,
    base_fingerprint: str,
    versions: dict[str, str | None],
) -> str:
    """16 hex digits from everything that decides the result; where the data and weights lie is left out.

    `strategy` is what the name in `config` means today, None if that is not known.
    """
    values = config.model_dump(mode="json")
    values["data"].pop("path")
    values["train"]["group_by_length"] = False  # a setting of earlier versions, whose ids stay
    values["train"]["dataloader_num_workers"] = 0  # so it stands in the ids of earlier records
    for name in ("features", "acceleration"):  # they save time and change nothing but rounding
        values.pop(name)
    values["saliency"].pop("maps")  # for looking at
    values["backbone"] = values["backbone"].partition(":")[0]
    values["metrics"] = [_with_content(name) for name in values["metrics"]]
    text = json.dumps(
        [values, strategy.model_dump(mode="json") if strategy else None, data_fingerprint, base_fingerprint, versions],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_content(metric: str) -> str:
    """A metric's name, and a digest of the file that it is given if it is: other terms make another score."""
    source = Path(metric.partition(":")[2]).expanduser()
    return f"{metric}={hashlib.sha256(source.read_bytes()).hexdigest()}" if source.is_file() else metric


def write_record(record: Record, folder: Path, name: str | None = None) -> Path:
    """Write `<run_id>.json`, or `name`, at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{record.run_id}.json")
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=1) + "\n")
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)
    return path


def read_record(path: Path) -> Record:
    """The record in a file; ConfigError if it is not one."""
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, OSError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"{path} is not a medgraft record: {why}") from None


def read_records(folder: Path) -> tuple[Record, ...]:
    """Every record of `medgraft bench` in `folder`, or that of a single run, sorted by backbone, data, strategy and seed."""
    inner = folder / "records"
    source = inner if inner.is_dir() else folder
    if source == folder and (folder / RECORD).is_file():
        return (read_record(folder / RECORD),)
    if not source.is_dir():
        raise ConfigError(f"There is no folder {folder} with records. `medgraft bench SUITE --out {folder}` makes one.")
    records = [read_record(path) for path in sorted(source.glob("*.json"))]
    if not records:
        raise ConfigError(f"{source} holds no records. `medgraft bench SUITE --out {folder}` makes them.")
    return tuple(sorted(records, key=lambda r: (r.backbone, r.data, r.strategy, r.seed)))
