"""Plans a suite: its grid of runs with their ids, and pairs of backbone and strategy that are unsupported, with reasons."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medgraft import hardware
from medgraft.backbones import Backbone, RemoteCaptioner, get_backbone, get_captioner
from medgraft.backbones.image_size import config_for_size, refuse_size
from medgraft.backbones.published import planning_config
from medgraft.backbones.side_by_side import refuse_several_images
from medgraft.benchmark.recording import run_id
from medgraft.benchmark.validation import Validation
from medgraft.config import RunConfig, RunSettings, SuiteConfig
from medgraft.data import data_fingerprint, load_data
from medgraft.errors import ConfigError, StrategyError, suggestion
from medgraft.metrics import check_metrics
from medgraft.models import settled
from medgraft.plugin import PluginManager
from medgraft.strategies import Applied, Strategy, apply_strategy, changes_base, get_strategy, quantization_config
from medgraft.strict_model import validated
from medgraft.training import check_trackers

Planned = Sequence[tuple[RunConfig, Strategy]]  # the runs of a grid


def expand(suite: SuiteConfig) -> tuple[RunConfig, ...]:
    """Every run of the grid; ConfigError if an override names a strategy that is not in the suite."""
    rows = [
        (entry, suite.strategies) if isinstance(entry, str) else (entry.backbone, entry.strategies) for entry in suite.backbones
    ]
    strategies = {strategy for _, names in rows for strategy in names}
    for name in suite.overrides:
        if name not in strategies:
            raise ConfigError(
                f"Suite {suite.name}: overrides for {name!r}, which is not one of its strategies.{suggestion(name, strategies)}"
            )
    runs = []
    grid = [
        (backbone, data, seed, strategy)
        for backbone, names in rows
        for data, seed, strategy in itertools.product(suite.data, suite.seeds, names)
    ]
    shared = {name: getattr(suite, name) for name in RunSettings.model_fields}
    for backbone, data, seed, strategy in grid:
        changes = suite.overrides.get(strategy, {})
        values = {
            **shared,
            "backbone": backbone,
            "strategy": strategy,
            "strategy_options": changes.get("strategy", {}),
            "data": data,
            "train": {**suite.train.model_dump(), **changes.get("train", {})},
            "seed": seed,
        }
        runs.append(validated(RunConfig, values, f"Suite {suite.name}, {strategy}"))
    return tuple(runs)


@dataclass(frozen=True)
class PlannedRun:
    """A run with its id and the folder for its files."""

    config: RunConfig
    run_id: str

    @property
    def folder(self) -> str:
        """The run's folder in the suite's results: readable and unique."""
        words = (self.config.backbone.partition(":")[0], self.config.strategy, self.config.data.name, f"s{self.config.seed}")
        return "runs/" + re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(words)) + "_" + self.run_id[:8]


@dataclass(frozen=True)
class Plan:
    """Planned runs; `unsupported` maps (backbone, strategy) to the reason why that pair is skipped."""

    runs: tuple[PlannedRun, ...]
    unsupported: dict[tuple[str, str], str]


def plan(configs: Iterable[RunConfig], *, plugins: PluginManager, records: Path | None = None) -> Plan:
    """Runs with their ids; one that an earlier version recorded in the folder `records` keeps its id.

    Reads the data, the digests of the base weights and the models' shapes, and raises every error in them, so that a
    misspelled name ends the suite before its first run.
    """
    versions = hardware.versions()
    bases: dict[str, tuple[str, str]] = {}
    prints: dict[tuple[str, tuple[str, ...]], tuple[str, bool]] = {}  # and whether examples have several images
    reasons: dict[tuple[str, str], str | None] = {}
    planned = []
    for config in configs:
        strategy = get_strategy(config.strategy, config.strategy_options, plugins=plugins)
        check_trackers(config.train.report_to)
        check_metrics(config.metrics, plugins)
        pair = (config.backbone, config.strategy)
        if pair not in reasons:
            reasons[pair] = why_unsupported(config.backbone, strategy, plugins=plugins)
        if reasons[pair] is not None:
            continue
        _check_size(config, plugins)
        strategy = settled(config.backbone, strategy, plugins=plugins)
        splits = config.needed_splits(strategy.trains)
        data_key = (config.data.model_dump_json(), splits)
        if data_key not in prints:
            data = load_data(config.data, plugins=plugins, splits=splits)
            prints[data_key] = data_fingerprint(data.examples), data.several_images
            if strategy.trains:
                Validation.of(config, data, plugins)
        captioner, source = get_captioner(config.backbone, plugins=plugins)
        if prints[data_key][1]:
            refuse_several_images(captioner, plugins)
        if config.backbone not in bases:
            base = captioner.fingerprint(source)
            former = captioner.former_fingerprint(source) if issubclass(captioner, Backbone) else base
            if issubclass(captioner, RemoteCaptioner):
                captioner.check_generation(config.generation)
            bases[config.backbone] = base, former
        ids = [run_id(config, strategy, prints[data_key][0], base, versions) for base in bases[config.backbone]]
        recorded = records is not None and (records / f"{ids[1]}.json").is_file()
        planned.append(PlannedRun(config, ids[1] if recorded else ids[0]))
    return Plan(tuple(planned), {pair: reason for pair, reason in reasons.items() if reason is not None})


def _check_size(config: RunConfig, plugins: PluginManager) -> None:
    """BackboneError if the run's backbone takes no images of the size that `config` asks for."""
    captioner, source = get_captioner(config.backbone, plugins=plugins)
    if issubclass(captioner, RemoteCaptioner):
        refuse_size(captioner, config.image.size, plugins=plugins)
    elif config.image.size is not None:
        config_for_size(captioner, planning_config(source, captioner.model_types), config.image.size, plugins=plugins)


def why_unsupported(backbone: str, strategy: Strategy, *, plugins: PluginManager) -> str | None:
    """Why `strategy` cannot be used on `NAME[:SOURCE]`, or None if it can; needs only a meta model, no weights."""
    captioner, _ = get_captioner(backbone, plugins=plugins)
    try:
        if issubclass(captioner, RemoteCaptioner):
            refuse_training(strategy)
        else:
            apply_to_meta(backbone, strategy, plugins=plugins)
    except StrategyError as error:
        return str(error)
    return None


def refuse_training(strategy: Strategy) -> None:
    """Raise StrategyError if `strategy` trains; for models behind an API."""
    if strategy.trains or strategy.quantization != "none":
        raise StrategyError("A model behind an API cannot be trained here.")


def apply_to_meta(backbone: str, strategy: Strategy, *, plugins: PluginManager) -> Applied | None:
    """`strategy` applied to the backbone's meta model, with the base unquantised; raises the same errors as on weights.

    A LoRA that is initialised from the weights is applied with the usual initialisation. None if another PEFT method is, so
    that it cannot be applied without them.
    """
    backbone_class, source = get_backbone(backbone, plugins=plugins)
    strategy = settled(backbone, strategy, plugins=plugins)
    quantization_config(strategy, backbone_class.anatomy, backbone_class.never_quantized)
    config = planning_config(source, backbone_class.model_types)
    plain = strategy.model_copy(update={"quantization": "none"})
    if changes_base(strategy):
        others = {name: value for name, value in strategy.options.items() if name != "init_lora_weights"}
        plain = plain.model_copy(update={"options": others})
    try:
        return apply_strategy(backbone_class.meta_model(config), backbone_class.anatomy, plain)
    except ConfigError as error:
        if "meta" in str(error):
            return None
        raise
