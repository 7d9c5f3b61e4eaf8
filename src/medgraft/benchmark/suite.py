"""From a suite to its runs: pure expansion, in the order of the grid."""

from __future__ import annotations

import itertools

from medgraft.config import RunConfig, SuiteConfig, validated
from medgraft.errors import ConfigError, suggestion


def expand(suite: SuiteConfig) -> tuple[RunConfig, ...]:
    """Every run of the grid; ConfigError if an override names a strategy that the suite does not have."""
    rows = [
        (entry, suite.strategies) if isinstance(entry, str) else (entry.backbone, entry.strategies) for entry in suite.backbones
    ]
    strategies = {strategy for _, several in rows for strategy in several}
    for name in suite.overrides:
        if name not in strategies:
            raise ConfigError(
                f"Suite {suite.name}: overrides for {name!r}, which is no strategy of it.{suggestion(name, strategies)}"
            )
    runs = []
    grid = [
        (backbone, data, seed, strategy)
        for backbone, several in rows
        for data, seed, strategy in itertools.product(suite.data, suite.seeds, several)
    ]
    for backbone, data, seed, strategy in grid:
        changes = suite.overrides.get(strategy, {})
        values = {
            "backbone": backbone,
            "strategy": strategy,
            "strategy_options": changes.get("strategy", {}),
            "data": data,
            "train": {**suite.train.model_dump(), **changes.get("train", {})},
            "generation": suite.generation,
            "features": suite.features,
            "acceleration": suite.acceleration,
            "saliency": suite.saliency,
            "metrics": suite.metrics,
            "eval_split": suite.eval_split,
            "seed": seed,
        }
        runs.append(validated(RunConfig, values, f"Suite {suite.name}, {strategy}"))
    return tuple(runs)
