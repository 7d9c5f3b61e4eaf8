"""What training measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medgraft.training.chosen_weights import ChosenWeights


@dataclass(frozen=True)
class TrainResult:
    """What training measured: loss and seconds of every optimiser step, and validation losses as (step, loss).

    Seconds include the wait for data; steps made before a resume have none. `epochs` may be a fraction. `step_flops` are the
    FLOPs of the first batch's matrix products, None with a quantised base, whose products torch does not count.
    `skipped_steps` counts steps in fp16 that changed no weight, as their gradients overflowed; the loss is then scaled less.
    `energy_joules` is the energy of all steps, None without a counter for it or if some steps were not measured.
    `learning_rates` are the peak rates where there are several, by what they belong to, such as `vision` or `text B`.
    `chosen` says how the weights were chosen, None if they are those of the last step.
    """

    losses: tuple[float, ...]
    step_seconds: tuple[float, ...]
    validation_losses: tuple[tuple[int, float], ...]
    epochs: float
    step_flops: int | None
    energy_joules: float | None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    skipped_steps: int = 0
    chosen: ChosenWeights | None = None
