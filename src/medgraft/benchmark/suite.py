"""From a suite to its runs: pure expansion, in the order of the grid."""

from __future__ import annotations

import itertools

from medgraft.config import RunConfig, SuiteConfig, validated
from medgraft.errors import ConfigError, suggestion


def expand(suite: SuiteConfig) -> tuple[RunConfig, ...]:
    """Every run of the grid; ConfigError if an override names a strategy that the suite does not have."""
    for name in suite.overrides:
        if name not in suite.strategies:
            raise ConfigError(
                f"Suite {suite.name}: overrides for {name!r}, which is no strategy of it.{suggestion(name, suite.strategies)}"
            )
    runs = []
    for backbone, data, seed, strategy in itertools.product(suite.backbones, suite.data, suite.seeds, suite.strategies):
        changes = suite.overrides.get(strategy, {})
        values = {
            "backbone": backbone,
            "strategy": strategy,
            "strategy_options": changes.get("strategy", {}),
            "data": data,
            "train": {**suite.train.model_dump(), **changes.get("train", {})},
            "generation": suite.generation,
            "metrics": suite.metrics,
            "eval_split": suite.eval_split,
            "seed": seed,
        }
        runs.append(validated(RunConfig, values, f"Suite {suite.name}, {strategy}"))
    return tuple(runs)
