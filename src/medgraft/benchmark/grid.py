"""Plans a grid on several workers: seconds from the first run to the last, money, and bytes of stored features.

Seconds of a run are fitted to records where there are some: those of the same backbone and strategy give seconds for each
image seen in training, for each image captioned, and once; a row without records has the dry run's estimate, times the
median ratio of the other rows' measured to estimated seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from medgraft.benchmark.record import Record
from medgraft.config import SuiteConfig

_START = 3.0  # seconds of a run outside its phases: its process, imports
_UNMEASURED = 15.0  # seconds of a run besides training and captioning, where no record says more
_TRAINING = ("train", "data", "forward", "backward", "optimizer", "validation", "checkpoint")
_CAPTIONING = ("generation", "scoring")


@dataclass(frozen=True)
class Load:
    """What a run does: its row in the grid, images seen in training (each counts once per epoch) and captioned.

    `training` and `captioning` are the dry run's seconds for all of them.
    """

    backbone: str
    strategy: str
    trained: int
    captioned: int
    training: float
    captioning: float


@dataclass(frozen=True)
class Costs:
    """Seconds of a run: once, for each image seen in training, and for each image captioned; None if no record has them."""

    once: float
    training: float | None
    captioning: float | None


@dataclass(frozen=True)
class Fit:
    """Costs by (backbone, strategy); ratios of measured to estimated seconds for all other rows; what they were fitted to."""

    costs: Mapping[tuple[str, str], Costs]
    training: float = 1.0
    captioning: float = 1.0
    once: float = _UNMEASURED
    records: int = 0
    machines: tuple[str, ...] = ()

    def seconds(self, load: Load) -> float:
        """Seconds of a run, from the start of its process to its end."""
        own = self.costs.get((load.backbone, load.strategy), Costs(self.once, None, None))
        training = load.training * self.training if own.training is None else load.trained * own.training
        captioning = load.captioning * self.captioning if own.captioning is None else load.captioned * own.captioning
        return _START + own.once + training + captioning


def fit(records: Iterable[Record], loads: Iterable[Load] = ()) -> Fit:
    """Fit to the finished runs among `records`; `loads` are what the dry run estimates of the grid."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.status == "ok" and record.backbone != "baseline" and record.phase_seconds:
            found.setdefault((record.config.backbone, record.strategy), []).append(record)
    costs = {row: _costs(several) for row, several in found.items()}
    estimated = {(load.backbone, load.strategy): load for load in loads}
    pairs = [(costs[row], load) for row, load in estimated.items() if row in costs]
    training = [own.training * load.trained / load.training for own, load in pairs if own.training and load.training]
    captioning = [
        own.captioning * load.captioned / load.captioning for own, load in pairs if own.captioning and load.captioning
    ]
    every = [record for several in found.values() for record in several]
    return Fit(
        costs,
        median(training) if training else 1.0,
        median(captioning) if captioning else 1.0,
        median(own.once for own in costs.values()) if costs else _UNMEASURED,
        len(every),
        tuple(sorted({_machine(record) for record in every})),
    )


def _costs(records: Sequence[Record]) -> Costs:
    once, training, captioning = [], [], []
    for record in records:
        phases = record.phase_seconds or {}
        parts = [sum(phases.get(name, 0.0) for name in names) for names in (_TRAINING, _CAPTIONING)]
        once.append(sum(phases.values()) - sum(parts))
        train = record.config.train
        seen = (record.steps or 0) * train.per_device_train_batch_size * train.gradient_accumulation_steps
        if seen:
            training.append(parts[0] / seen)
        if captioned := (record.images or {}).get(record.config.eval_split, 0):
            captioning.append(parts[1] / captioned)
    return Costs(median(once), median(training) if training else None, median(captioning) if captioning else None)


def _machine(record: Record) -> str:
    found = record.hardware
    return ", ".join(found.accelerators) or f"{found.cpu}, {found.threads} threads"


@dataclass(frozen=True)
class GridPlan:
    """A grid on `workers`: runs with trials and timings, their seconds in all and from start to end, and what the workers cost.

    Seconds are None if the data are not here, `price` if no price is set, `store_bytes` if no features are stored or the base's
    files are not here. `records` is what the times are fitted to, 0 for the dry run's rough ones.
    """

    workers: int
    runs: int
    work_seconds: float | None
    seconds: float | None
    price: float | None
    store_bytes: int | None
    records: int
    machines: tuple[str, ...]


def plan_grid(
    suite: SuiteConfig, loads: Sequence[Load | None], validation: int, store_bytes: int | None, fitted: Fit
) -> GridPlan:
    """Plan `suite` on executor.workers; `loads` are those of its runs in order, of which `validation` images choose rates."""
    known = [load for load in loads if load is not None]
    rows = list({(load.backbone, load.strategy): load for load in known if load.trained}.values())
    trials, timings = [], []
    if suite.tuning is not None:
        share = (suite.tuning.num_train_epochs or suite.train.num_train_epochs) / suite.train.num_train_epochs
        trials = [_scaled(load, share, validation) for load in rows for _ in suite.tuning.factors]
    if suite.timing is not None:
        seen = suite.timing.steps * suite.train.per_device_train_batch_size
        timings = [_scaled(load, seen / load.trained, 0) for load in rows for _ in range(suite.timing.repeats)]
    workers, hourly = suite.executor.workers or 1, suite.executor.price_per_hour
    runs = len(loads) + len(trials) + len(timings)
    if len(known) < len(loads) or not known:
        return GridPlan(workers, runs, None, None, None, store_bytes, fitted.records, fitted.machines)
    parts = [[fitted.seconds(load) for load in several] for several in (trials, known, timings)]
    seconds = seconds_on(parts[0], workers) + seconds_on(parts[1], workers) + sum(parts[2])  # timings run alone
    price = None if hourly is None else hourly * workers * seconds / 3600
    return GridPlan(workers, runs, sum(map(sum, parts)), seconds, price, store_bytes, fitted.records, fitted.machines)


def _scaled(load: Load, share: float, captioned: int) -> Load:
    each = load.captioning / load.captioned if load.captioned else 0.0
    return replace(
        load,
        trained=round(load.trained * share),
        training=load.training * share,
        captioned=captioned,
        captioning=each * captioned,
    )


def seconds_on(seconds: Iterable[float], workers: int) -> float:
    """Seconds until all runs have ended, if each in turn goes to the worker that is free first."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)
