"""Runs a suite: chooses learning rates, does missing runs, times steps, adds baselines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medgraft.benchmark.baselines import run_baselines
from medgraft.benchmark.plan import PlannedRun, expand, plan
from medgraft.benchmark.process import Job, run_in_process, start_server
from medgraft.benchmark.record import Record, Tuning, read_record
from medgraft.benchmark.timing import TIMING, timing_id
from medgraft.benchmark.tuning import choose, trials
from medgraft.config import RunConfig, SuiteConfig, TimingConfig, TuningConfig
from medgraft.plugin import PluginManager
from medgraft.strategies import get_strategy

_logger = logging.getLogger(__name__)


def run_suite(suite: SuiteConfig, out: Path, *, plugins: PluginManager, retry_failed: bool = False) -> tuple[Record, ...]:
    """Do every run of `suite` without a record in `out/records`, and return the records of all runs in the suite's order.

    Trials of learning rates, if the suite has `tuning`, go to `out/tuning` and come first; timed steps go to `out/timing` and
    come last. Then follow the baselines' records, for each data set that something was trained on. Unsupported pairs of
    backbone and strategy are skipped and logged.
    """
    start_server()
    work = _Work(out, plugins, retry_failed)
    configs = expand(suite)
    choices: dict[str, Tuning] = {}
    if suite.tuning is not None:
        plan(configs, plugins=plugins)  # an unknown name ends the suite before the search
        choices = _tune(configs, suite.tuning, work)
        configs = tuple(_tuned(config, choices.get(_row_of(config))) for config in configs)
    planned = plan(configs, plugins=plugins, records=work.records)
    for (backbone, strategy), reason in planned.unsupported.items():
        _logger.info("left out: %s on %s: %s", strategy, backbone, reason)
    results = []
    for number, run in enumerate(planned.runs, start=1):
        results.append(work.do(run, f"[{number}/{len(planned.runs)}]", tuning=choices.get(_row_of(run.config))))
    if suite.timing is not None:
        _time(list(zip(planned.runs, results, strict=True)), suite.timing, work)
    trained = {run.config.data.model_dump_json(): run.config for run in planned.runs if run.config.strategy != "zero-shot"}
    for config in trained.values():
        results += run_baselines(config, out, plugins=plugins)
    return tuple(results)


@dataclass(frozen=True)
class _Work:
    """Where runs go, and which are done."""

    out: Path
    plugins: PluginManager
    retry_failed: bool

    @property
    def records(self) -> Path:
        """The folder of their records."""
        return self.out / "records"

    def below(self, name: str) -> _Work:
        """The same, with records and files in the subfolder `name`."""
        return replace(self, out=self.out / name)

    def do(self, run: PlannedRun, number: str, *, tuning: Tuning | None = None, evaluate: bool = True) -> Record:
        """The record of `run`, which is done now if it has none yet."""
        job = Job(run.config, run.run_id, self.out.resolve(), run.folder, tuning, evaluate)
        name = f"{number} {run.config.backbone} {run.config.strategy} seed {run.config.seed}"
        known = read_record(job.record_path) if job.record_path.is_file() else None
        if known is not None and (known.status == "ok" or not self.retry_failed):
            again = " (failed; --retry-failed tries again)" if known.status == "failed" else ""
            _logger.info("%s: done before%s", name, again)
            return known
        _logger.info("%s", name)
        record = run_in_process(job)
        if record.status == "failed":
            _logger.info("  failed: %s", record.error)
            _logger.debug("%s", record.traceback)
        return record


def _row_of(config: RunConfig) -> str:
    """The settings that runs of one grid row share: all but the seed and the learning rate, which is chosen per row."""
    return config.model_copy(
        update={"seed": 0, "train": config.train.model_copy(update={"learning_rate": None})}
    ).model_dump_json()


def _tune(configs: Sequence[RunConfig], tuning: TuningConfig, work: _Work) -> dict[str, Tuning]:
    """The learning rate chosen for each row of the grid; none if the row trains nothing or all of its trials failed."""
    rows: dict[str, tuple[RunConfig, ...]] = {}
    for config in configs:
        strategy = get_strategy(config.strategy, config.strategy_options, plugins=work.plugins)
        if _row_of(config) not in rows and strategy.trains:
            rows[_row_of(config)] = trials(config, strategy, tuning)
    work = work.below("tuning")
    every = [tried for candidates in rows.values() for tried in candidates]
    planned = plan(every, plugins=work.plugins, records=work.records).runs
    ids = {run.config.model_dump_json(): run for run in planned}
    choices = {}
    for number, (row, candidates) in enumerate(rows.items(), start=1):
        runs = [ids[tried.model_dump_json()] for tried in candidates if tried.model_dump_json() in ids]
        records = [work.do(run, f"[tuning {number}/{len(rows)}] {_rate(run)}:") for run in runs]
        choice = choose(records, tuning)
        if choice is not None:
            choices[row] = choice
            scores = ", ".join(f"{rate:g}: {'failed' if score is None else f'{score:.3f}'}" for rate, score, _ in choice.tried)
            rate = f"learning rate {choice.chosen:g} by {choice.score} ({scores})"
            _logger.info("  %s: %s", candidates[0].strategy, rate)
        elif records:
            _logger.info("  %s: every trial failed; its runs use their configured rate", candidates[0].strategy)
    return choices


def _rate(run: PlannedRun) -> str:
    return f"learning rate {run.config.train.learning_rate:g}"


def _tuned(config: RunConfig, choice: Tuning | None) -> RunConfig:
    if choice is None:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": choice.chosen})})


def _time(runs: Sequence[tuple[PlannedRun, Record]], timing: TimingConfig, work: _Work) -> None:
    """Time some steps of each trained run of the first seed; the whole grid runs `timing.repeats` times."""
    trained = [
        run for run, record in runs if record.status == "ok" and record.steps and run.config.seed == runs[0][0].config.seed
    ]
    for repeat in range(timing.repeats):
        for number, run in enumerate(trained, start=1):
            train = run.config.train.model_copy(update={"max_steps": timing.steps, "num_train_epochs": 1.0})
            short = PlannedRun(run.config.model_copy(update={"train": train}), timing_id(run.run_id, repeat))
            work.below(TIMING).do(short, f"[timing {repeat + 1}/{timing.repeats}, {number}/{len(trained)}]", evaluate=False)
