"""What this process knows of a run and its record has: its id, the features it reused, machine and versions."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medgraft import hardware, processes
from medgraft.benchmark.record import FeatureUse, Record
from medgraft.config import DataConfig, RunConfig
from medgraft.features import CachedFeatures, ReusablePrefix
from medgraft.forgetting_config import ForgettingConfig
from medgraft.image_config import ImageConfig
from medgraft.strategies import Strategy


def run_id(
    config: RunConfig,
    strategy: Strategy | None,
    data_fingerprint: str,
    base_fingerprint: str,
    versions: dict[str, str | None],
    start: str | None = None,
) -> str:
    """16 hex digits of a hash over everything that affects the result; locations of data and weights do not count.

    `strategy` is the current definition of the strategy named in `config`, None if unknown. `start` is the digest of the
    adapter that training goes on from.
    """
    values = config.model_dump(mode="json")
    data = {name: value for name, value in values["data"].items() if name not in ("path", "root")}
    added = {name: DataConfig.model_fields[name].default for name in ("window", "frame", "prompt", "skip_bad_rows", "on_leak")}
    values["data"] = {name: value for name, value in data.items() if name not in added or value != added[name]}
    values["train"]["group_by_length"] = False  # a setting of earlier versions; keeps their ids valid
    former = {"auto": "auto", "bf16": True, "fp32": False}.get(values["train"]["dtype"])
    if former is not None:  # what earlier records have under its former name
        del values["train"]["dtype"]
        values["train"]["bf16"] = former
    values["train"]["dataloader_num_workers"] = 0  # the value in the ids of earlier records
    values["augmentation"] = {**config.augmentation.changes(), "views": config.features.views}
    if not config.augmentation.on:  # as in the ids of earlier records
        values.pop("augmentation")
    values["generation"] = config.generation.recorded()
    for name in ("features", "acceleration", "model"):  # these change only speed and rounding
        values.pop(name)
    values["saliency"].pop("maps")  # only for display
    if config.forgetting in (ForgettingConfig(), ForgettingConfig(images=0)):  # as in the ids of earlier records
        del values["forgetting"]
    if config.image == ImageConfig():  # likewise
        del values["image"]
    del values["train"]["save_final_state"]  # does not change the result
    values["train"].pop("logging_steps", None)
    values.pop("start_from")
    values |= {} if start is None else {"start": start}
    values |= {"processes": hardware.process_count()} if hardware.process_count() > 1 else {}
    values["backbone"] = values["backbone"].partition(":")[0]
    values["metrics"] = [_with_content(name) for name in values["metrics"]]
    text = json.dumps(
        [values, strategy.model_dump(mode="json") if strategy else None, data_fingerprint, base_fingerprint, versions],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def failed_record(config: RunConfig, error: str, traceback: str | None = None) -> Record:
    """The record of a failed run. Its id depends on the config alone, as data and base may be missing."""
    identity = run_id(config, None, "", "", hardware.versions())
    return Record(run_id=identity, status="failed", error=error, traceback=traceback, **about_run(config))


def about_run(config: RunConfig) -> dict[str, Any]:
    """Fields of a record that are known for every run, failed or not."""
    return {
        "backbone": config.backbone, "strategy": config.strategy, "data": config.data.name, "seed": config.seed,
        "config": config, "versions": hardware.versions(), "hardware": hardware.describe(), "git": hardware.git_revision(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _with_content(metric: str) -> str:
    """A metric's name with the digest of its file, if it has one: another file gives other scores."""
    source = Path(metric.partition(":")[2]).expanduser()
    return f"{metric}={hashlib.sha256(source.read_bytes()).hexdigest()}" if source.is_file() else metric


def feature_use(prefix: ReusablePrefix | None, cached: CachedFeatures | None) -> FeatureUse | None:
    """Of a prepared model; None for one behind an API."""
    if prefix is None or cached is None:
        return None if prefix is None else FeatureUse(seam=None, reason=prefix.reason)
    found, built = (sum(processes.gathered(count)) for count in (cached.found, cached.built))
    return FeatureUse(seam=cached.seam.name, reason=prefix.reason, found=found, built=built)
