"""Wall-clock time by phase, each second counted once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

Phase = Literal[
    "read_data", "load", "digests", "features", "train", "data", "forward", "backward", "optimizer", "validation", "checkpoint",
    "package", "generation", "saliency", "scoring", "forgetting",
]  # fmt: skip
STEPS: tuple[Phase, ...] = ("train", "data", "forward", "backward", "optimizer")  # "train": time in none of the other four


class Clock:
    """Attributes time to the innermost open phase, so that nested phases are not counted twice."""

    def __init__(self) -> None:
        self._seconds: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)
        self._open: list[Phase] = []
        self._since = 0.0
        self._start = time.perf_counter()
        self.time_to_first_step: float | None = None  # seconds since this object was created

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the time inside the block as `name`."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def add(self, name: Phase, seconds: float) -> None:
        """Add time that an earlier process spent on this run."""
        self._seconds[name] += seconds

    def end_of_step(self) -> None:
        """Record the time of the first call, the end of the first training step."""
        if self.time_to_first_step is None:
            self.time_to_first_step = time.perf_counter() - self._start

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now

    @property
    def steps(self) -> float:
        """Seconds spent in training steps, including their setup."""
        return sum(self._seconds[phase] for phase in STEPS)

    @property
    def training(self) -> float:
        """Seconds needed to train the weights: building features and the training steps."""
        return self._seconds["features"] + self.steps

    @property
    def seconds(self) -> Mapping[Phase, float]:
        """Seconds of every phase; time since the last change of phase is not included."""
        return dict(self._seconds)
