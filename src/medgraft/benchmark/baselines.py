"""Baselines without a model: the training images' most frequent caption for every image, and a random one for each.

A model that does not beat them has learnt how the captions are worded, but does not use the image.
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from medgraft import hardware
from medgraft.benchmark.evaluation import evaluated
from medgraft.benchmark.lease import Leases
from medgraft.benchmark.record import Record, read_record, run_id, write_record
from medgraft.config import RunConfig
from medgraft.data import data_fingerprint, load_data
from medgraft.plugin import PluginManager
from medgraft.scoring import captions_of, write_captions
from medgraft.types import SPLITS, CaptionData

_logger = logging.getLogger(__name__)

BASELINE = "baseline"  # the backbone's name in a baseline's record
STRATEGIES = ("most-frequent", "random")


def run_baselines(config: RunConfig, out: Path, *, plugins: PluginManager, leases: Leases) -> tuple[Record, ...]:
    """The record of each baseline on the data of `config`; computes those that are not in `out` yet, each under its lease."""
    data = load_data(config.data, plugins=plugins)
    if not data.split("train") or not data.split(config.eval_split):
        return ()
    fingerprint = data_fingerprint(data.examples)
    records = []
    for name in STRATEGIES:
        own = config.model_copy(update={"backbone": BASELINE, "strategy": name, "strategy_options": {}, "seed": 0})
        identity = run_id(own, None, fingerprint, "", hardware.versions())
        path = out / "records" / f"{identity}.json"
        if not path.is_file():
            with leases.wait(identity, lambda owner: _logger.info("baselines: left to %s, which does them", owner)):
                if not path.is_file():
                    _run(own, identity, data, fingerprint, out, plugins)
        records.append(read_record(path))
    return tuple(records)


def _run(config: RunConfig, identity: str, data: CaptionData, fingerprint: str, out: Path, plugins: PluginManager) -> None:
    captions = captions_of(data.split(config.eval_split), _captions(config.strategy, data, config))
    folder = f"runs/{BASELINE}_{config.strategy}_{config.data.name}_{identity[:8]}"
    write_captions(captions, out / folder)
    record = Record(
        run_id=identity, backbone=BASELINE, strategy=config.strategy, data=config.data.name, seed=0, status="ok",
        trainable_parameters=0, adapter=folder, data_fingerprint=fingerprint,
        images={split: len(data.split(split)) for split in SPLITS}, config=config,
        versions=hardware.versions(), hardware=hardware.describe(), git=hardware.git_revision(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        **evaluated(captions, metrics=config.metrics, plugins=plugins).for_record(),
    )  # fmt: skip
    write_record(record, out / "records")


def _captions(name: str, data: CaptionData, config: RunConfig) -> list[str]:
    captions = [caption for example in data.split("train") for caption in example.captions if caption]
    count = len(data.split(config.eval_split))
    if name == "most-frequent":
        return [Counter(captions).most_common(1)[0][0]] * count
    return [captions[i] for i in np.random.default_rng(0).integers(0, len(captions), count)]
