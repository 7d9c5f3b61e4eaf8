"""A run before its training: settings and strategy, data, and the model with the strategy applied."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from medgraft import hardware, processes, training
from medgraft.adapter import Start, read_start
from medgraft.backbones import get_captioner
from medgraft.backbones.side_by_side import refuse_several_images
from medgraft.clock import Clock
from medgraft.config import RunConfig
from medgraft.data import data_fingerprint, load_data
from medgraft.device_map import check_devices
from medgraft.errors import ConfigError, DataError
from medgraft.metrics import check_metrics, with_task_metrics
from medgraft.models import settled
from medgraft.plugin import PluginManager
from medgraft.prepare import Prepared, prepare
from medgraft.strategies import Strategy, get_strategy
from medgraft.types import SPLITS, CaptionData

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What every step of a run needs."""

    config: RunConfig
    strategy: Strategy
    out: Path
    plugins: PluginManager
    clock: Clock
    start: Start | None = None


def planned(config: RunConfig, out: Path, plugins: PluginManager) -> Run:
    """The run with its strategy, on the base as it is stored, and the adapter that it starts from; reads no data."""
    config = with_task_metrics(config, [config.data], plugins=plugins)
    check_metrics(config.metrics, plugins)
    check_devices(config.model)
    start = read_start(config)
    strategy = start.strategy if start else get_strategy(config.strategy, config.strategy_options, plugins=plugins)
    strategy = settled(config.backbone, strategy, plugins=plugins)
    return Run(start.as_trained(config) if start else config, strategy, out, plugins, Clock(), start)


def read_data(run: Run) -> tuple[CaptionData, str]:
    """The data that the run needs, and their fingerprint."""
    config, clock = run.config, run.clock
    with clock.phase("read_data"), processes.one_first():
        data = load_data(config.data, plugins=run.plugins, splits=config.needed_splits(run.strategy.trains))
    if data.several_images:
        refuse_several_images(get_captioner(config.backbone, plugins=run.plugins)[0], run.plugins)
        if hardware.is_sharded():  # processes whose batches differ in it would gather layers at other times, and wait for ever
            raise ConfigError("FSDP: studies of several images are not trained on sharded weights; set data.images=first.")
    if run.strategy.trains and not data.split("train"):
        raise DataError(f"{config.data.name}:{config.data.path} has no training images.")
    with clock.phase("digests"):
        return data, data_fingerprint(data.examples)


def prepare_model(run: Run, data: CaptionData) -> Prepared:
    """The model with the strategy applied; stores features of training images that are used more than once."""
    config, strategy = run.config, run.strategy
    with run.clock.phase("load"):
        attach = run.start.attach if run.start else None
        model = prepare(config, plugins=run.plugins, strategy=strategy, attach=attach, prompted=data.prompted)
    counts = ", ".join(f"{len(data.split(split))} {split}" for split in SPLITS if data.split(split))
    _logger.info("%s: %s (%s)", data.name, counts, data.report)
    trains = model.applied is not None and strategy.trains
    done = f"{config.strategy}: {model.applied.summary()}" if model.applied and trains else "zero-shot: nothing is trained"
    for sentence in (*data.report.sentences(), done):
        _logger.info("%s", sentence)
    if model.prefix is None:
        return model
    cached = model.features
    with run.clock.phase("features"):
        if cached is not None and trains:
            for examples in (data.split("train"), training.validation_examples(config, data) if config.train.validates else ()):
                training.build_features(cached, config, examples)
    built = f"; {cached.found} found, {cached.built} built" if cached and trains else ""
    _logger.info("features: %s%s", model.prefix, built)
    if cached is not None and cached.store.problem:
        _logger.warning("%s", cached.store.problem)
    return model
