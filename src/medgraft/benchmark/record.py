"""The record of a run: everything measured, under names that are a contract; `None` for what is unknown."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from medgraft.config import RunConfig
from medgraft.errors import ConfigError
from medgraft.strategies import Strategy


class Record(BaseModel):
    """One run. Times in seconds, sizes in bytes; `train_loss` has one value for every optimiser step.

    `training_seconds` is what one waits for to have the weights: building features and the steps, without loading,
    validation, checkpoints and captioning, which are in `phase_seconds`; there, on a CPU, steps are split into waiting for
    data, forward, backward and optimiser, with the rest as `train`. `features` says where the model was cut, and how
    many images' features were found in the store and built. `intervals` are those of `metrics` at 95 % over groups of test
    images, `signatures` the metrics' settings, `unavailable` why some could not be computed, `collapse` signs of captions
    that ignore the image (see medgraft.benchmark.evaluation). `usage` is what a model behind an API was asked: requests,
    tokens, cost. `step_flops` are the floating-point operations of the products of the first batch, forwards and backwards, as
    torch counts them (not with a quantised base), `energy_joules` what the machine's counters say that the steps took.
    `step_quartiles` are of the seconds of single steps, the first ones left out. `tuning` tells which learning
    rates were tried, what each scored on validation images and took, and which was chosen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    backbone: str
    strategy: str
    data: str
    seed: int
    status: Literal["ok", "failed"]
    training_seconds: float | None = None
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
    images: dict[str, int] | None = None
    data_report: dict[str, Any] | None = None
    data_fingerprint: str | None = None
    base_fingerprint: str | None = None
    phase_seconds: dict[str, float] | None = None
    features: dict[str, str | int | None] | None = None
    usage: dict[str, float | None] | None = None
    tuning: dict[str, Any] | None = None
    config: dict[str, Any]
    versions: dict[str, str | None]
    hardware: dict[str, Any]
    git: str | None = None
    finished: str | None = None
    error: str | None = None


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
    values.pop("features")  # they save time and change nothing but rounding
    values.pop("acceleration")
    values["train"]["dataloader_num_workers"] = 0  # so it stands in the ids of earlier records
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


def write_record(record: Record, folder: Path) -> Path:
    """Write `<run_id>.json` at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.run_id}.json"
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
        raise ConfigError(f"{path} is not a medgraft record: {str(error).splitlines()[0]}") from None


def read_records(folder: Path) -> tuple[Record, ...]:
    """Every record in `folder` or its `records/`, sorted by backbone, data, strategy and seed."""
    inner = folder / "records"
    source = inner if inner.is_dir() else folder
    if not source.is_dir():
        raise ConfigError(f"There is no folder {folder} with records. `medgraft bench SUITE --out {folder}` makes one.")
    records = [read_record(path) for path in sorted(source.glob("*.json"))]
    if not records:
        raise ConfigError(f"{source} holds no records. `medgraft bench SUITE --out {folder}` makes them.")
    return tuple(sorted(records, key=lambda r: (r.backbone, r.data, r.strategy, r.seed)))
