"""The settings of a run that a reader of a table wants to see: batch, learning rate, length, and those of the strategy."""

from __future__ import annotations

from dataclasses import dataclass

from medgraft.benchmark import BASELINE, Record
from medgraft.errors import MedgraftError
from medgraft.plugin import PluginManager
from medgraft.strategies import recorded_strategy


@dataclass(frozen=True)
class ShownSettings:
    """`batch_size`: captions of an optimiser step on a device; `learning_rate`: the peak; `options`: the strategy's, as K=V."""

    batch_size: int | None = None
    learning_rate: float | None = None
    steps: int | None = None
    epochs: float | None = None
    options: str = ""


def shown_settings(record: Record, plugins: PluginManager) -> ShownSettings:
    """The settings of a run that trains; those of a strategy that is not installed are only the ones set by hand."""
    train, by_hand = record.config.train, record.config.strategy_options
    if record.backbone == BASELINE:
        return ShownSettings()
    try:
        strategy = recorded_strategy(record.strategy, by_hand, plugins=plugins)
    except MedgraftError:
        rate, options = train.learning_rate, by_hand
    else:
        if not strategy.trains:
            return ShownSettings()
        rate, options = train.learning_rate or strategy.learning_rate, {**strategy.options, **by_hand}
    return ShownSettings(
        batch_size=train.per_device_train_batch_size * train.gradient_accumulation_steps,
        learning_rate=rate,
        steps=record.steps,
        epochs=None if train.max_steps > 0 else train.num_train_epochs,
        options=", ".join(f"{key}={value}" for key, value in options.items()),
    )
