"""Chooses learning rates on validation images: equally many trials for every strategy, and one rule."""

from __future__ import annotations

from collections.abc import Sequence

from medgraft.benchmark.record import Record, Tuning
from medgraft.config import SALIENCY_METRICS, RunConfig, SaliencyConfig, TuningConfig
from medgraft.errors import ConfigError
from medgraft.forgetting_config import ForgettingConfig
from medgraft.plugin import KnownScores
from medgraft.strategies import Strategy


def trials(config: RunConfig, strategy: Strategy, tuning: TuningConfig) -> tuple[RunConfig, ...]:
    """The trial runs for `config`, one for each factor; none if nothing is trained."""
    if not strategy.trains:
        return ()
    own = config.train.learning_rate or strategy.learning_rate
    length = {} if tuning.num_train_epochs is None else {"num_train_epochs": tuning.num_train_epochs}
    return tuple(
        config.model_copy(
            update={
                "train": config.train.model_copy(update={"learning_rate": float(f"{own * factor:.6g}"), **length}),
                "seed": tuning.seed,
                "eval_split": "validation",
                "metrics": tuple(name for name in config.metrics if name not in SALIENCY_METRICS),
                "saliency": SaliencyConfig(maps=0, curves=0),
                "forgetting": ForgettingConfig(images=0),
            }
        )
        for factor in tuning.factors
    )


def choose(records: Sequence[Record], tuning: TuningConfig, scores: KnownScores) -> Tuning | None:
    """The rate with the best score, the lower one of equals; None if every trial failed.

    ConfigError if finished trials lack the score that is to choose, or if it has no direction.
    """
    check_score(tuning, scores)
    if lacking := [r for r in records if r.status == "ok" and tuning.score not in (r.metrics or {})]:
        available = ", ".join(sorted(lacking[0].metrics or {})) or "none, as there are no validation images"
        reason = (lacking[0].unavailable or {}).get(tuning.score)
        why = f" ({reason})" if reason else ""
        raise ConfigError(f"tuning.score is {tuning.score!r}, which the trials do not have{why}. Available: {available}.")
    tried = []
    for record in records:
        rate, score = record.config.train.learning_rate, (record.metrics or {}).get(tuning.score)
        assert rate is not None  # set by `trials`
        tried.append((rate, score, record.training_seconds or 0.0))
    known = [(score, rate) for rate, score, _ in tried if score is not None]
    if not known:
        return None
    best = max(known, key=lambda pair: (scores[tuning.score].sign * pair[0], -pair[1]))
    seconds = sum(seconds for *_, seconds in tried)
    return Tuning(score=tuning.score, chosen=best[1], tried=tuple(tried), seconds=seconds)


def check_score(tuning: TuningConfig, scores: KnownScores) -> None:
    """ConfigError if it is not known whether more or less of `tuning.score` is better."""
    if scores[tuning.score].sign == 0:
        raise ConfigError(
            f"tuning.score is {tuning.score!r}, for which no installed metric says whether more or less is better. "
            "Name another score, or declare it in the plugin's MetricSpec (scores)."
        )
