"""How the weights of a training were chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChosenWeights:
    """How the weights were chosen: `scores` are (step, score) of each validation, None where the score had no value.

    `step` and `value` are those of the best one, the first of equals; None if there was none, and the weights are the last.
    """

    by: str
    step: int | None
    value: float | None
    scores: tuple[tuple[int, float | None], ...]
    stopped_early: bool

    def __str__(self) -> str:
        if self.step is None or self.value is None:
            return f"No validation had a score {self.by}; these are the last weights."
        early = ", where training stopped early" if self.stopped_early else ""
        return (
            f"These are the weights of step {self.step}, the best of {len(self.scores)} validations by {self.by} "
            f"({self.value:.4f}); the last was at step {self.scores[-1][0]}{early}."
        )
