"""Baselines without a model: the training images' most frequent caption for every image, and a random one for each.

Where examples have prompts of their own, such as questions, a third one answers from the question alone. A model that does not
beat them has learnt how the captions are worded, but does not use the image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from medgraft import hardware
from medgraft.benchmark.baseline_captions import baseline_captions, baseline_names
from medgraft.benchmark.evaluation import Evaluation, evaluated
from medgraft.benchmark.lease import Leases
from medgraft.benchmark.record import BASELINE, BASELINES, Record, read_record, write_record
from medgraft.benchmark.recording import run_id
from medgraft.benchmark.run import RunResult
from medgraft.config import DataConfig, RunConfig
from medgraft.data import data_fingerprint, load_data
from medgraft.errors import DataError
from medgraft.plugin import PluginManager
from medgraft.scoring import captions_of, write_captions
from medgraft.types import SPLITS, CaptionData, Example

_logger = logging.getLogger(__name__)


def run_baselines(config: RunConfig, out: Path, *, plugins: PluginManager, leases: Leases) -> tuple[Record, ...]:
    """The record of each baseline on the data of `config`; computes those that are not in `out` yet, each under its lease."""
    data = load_data(config.data, plugins=plugins)
    if not data.split("train") or not data.split(config.eval_split):
        return ()
    records = []
    names = baseline_names(data.split(config.eval_split))
    for own, identity in _identified(config, names, fingerprint := data_fingerprint(data.examples)):
        path = out / "records" / f"{identity}.json"
        if not path.is_file():
            with leases.wait(identity, lambda owner: _logger.info("baselines: left to %s, which does them", owner)):
                if not path.is_file():
                    captions = own.strategy, data.split("train"), data.split(config.eval_split)
                    _write(own, identity, data, fingerprint, out, evaluate_baseline(*captions, config.metrics, plugins))
        records.append(read_record(path))
    return tuple(records)


def write_baselines(result: RunResult, out: Path, *, plugins: PluginManager) -> dict[str, Evaluation]:
    """Score the baselines on the data of a finished run, by name; their records and captions go to `out/baselines`.

    Empty if the run scored nothing or read no training images. Several processes score them together, and the main one writes.
    """
    config, data = result.record.config, result.data
    found: dict[str, Evaluation] = {}
    if result.evaluation is None or not data.split("train"):
        return found
    chosen = result.evaluation.predictions
    examples = [example for example in data.split(config.eval_split) if example.id in chosen]
    for own, identity in _identified(config, baseline_names(examples), fingerprint := result.record.data_fingerprint or ""):
        found[own.strategy] = evaluate_baseline(own.strategy, data.split("train"), examples, config.metrics, plugins)
        if hardware.is_main_process():
            _write(own, identity, data, fingerprint, out / BASELINES, found[own.strategy])
    return found


def baselines_of(
    data: DataConfig, examples: Sequence[Example], metrics: tuple[str, ...], *, plugins: PluginManager
) -> dict[str, Evaluation]:
    """Scores of the baselines on `examples` of `data`, by name; none, with a line that says so, without training images."""
    try:
        train = load_data(data, plugins=plugins, splits=("train",)).split("train")
    except DataError:
        _logger.info("The data have no training images, so there are no captions that ignore the image to compare with.")
        return {}
    return {name: evaluate_baseline(name, train, examples, metrics, plugins) for name in baseline_names(examples)}


def evaluate_baseline(
    name: str, train: Sequence[Example], examples: Sequence[Example], metrics: tuple[str, ...], plugins: PluginManager
) -> Evaluation:
    """Scores of the baseline `name` on `examples`, from the captions of the training images."""
    return evaluated(captions_of(examples, baseline_captions(name, train, examples)), metrics=metrics, plugins=plugins)


def _identified(config: RunConfig, names: Sequence[str], fingerprint: str) -> list[tuple[RunConfig, str]]:
    """The settings and the id of each baseline."""
    changed = {"backbone": BASELINE, "strategy_options": {}, "seed": 0}
    configs = [config.model_copy(update={**changed, "strategy": name}) for name in names]
    return [(own, run_id(own, None, fingerprint, "", hardware.versions())) for own in configs]


def _write(config: RunConfig, identity: str, data: CaptionData, fingerprint: str, out: Path, found: Evaluation) -> None:
    folder = f"runs/{BASELINE}_{config.strategy}_{config.data.name}_{identity[:8]}"
    write_captions(found.captions, out / folder)
    record = Record(
        run_id=identity, backbone=BASELINE, strategy=config.strategy, data=config.data.name, seed=0, status="ok",
        trainable_parameters=0, adapter=folder, data_fingerprint=fingerprint,
        images={split: len(data.split(split)) for split in SPLITS}, config=config,
        versions=hardware.versions(), hardware=hardware.describe(), git=hardware.git_revision(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"), **found.for_record(),
    )  # fmt: skip
    write_record(record, out / "records")
