"""Runs a suite: chooses learning rates, does missing runs, times steps, adds baselines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medgraft.benchmark.baselines import run_baselines
from medgraft.benchmark.lease import ALL
from medgraft.benchmark.plan import PlannedRun, expand, plan
from medgraft.benchmark.record import Record, Tuning
from medgraft.benchmark.results_folder import check_writable
from medgraft.benchmark.sent_work import open_work
from medgraft.benchmark.timing import TIMING, timing_id
from medgraft.benchmark.tuning import check_score, choose, trials
from medgraft.benchmark.work import TUNING, Task, Work
from medgraft.config import RunConfig, SuiteConfig, TimingConfig, TuningConfig
from medgraft.plugin import KnownScores, PluginManager
from medgraft.strategies import get_strategy

_logger = logging.getLogger(__name__)


def run_suite(suite: SuiteConfig, out: Path, *, plugins: PluginManager, retry_failed: bool = False) -> tuple[Record, ...]:
    """Do every run of `suite` without a record in `out/records`, and return the records of all runs in the suite's order.

    Trials of learning rates, if the suite has `tuning`, go to `out/tuning` and come first; timed steps go to `out/timing` and
    come last. Then follow the baselines' records, for each data set that something was trained on. Unsupported pairs of
    backbone and strategy are skipped and logged. Several calls on one `out`, in processes on one or more machines, share the
    runs (medgraft.benchmark.lease), and all return every record.

    The executor of the suite's settings does the runs: this process, one after the other, or workers elsewhere.

    OutputError if `out` cannot be written, before anything is loaded, or if its disk is full.
    """
    check_writable(out)
    with open_work(suite.executor, out, plugins, retry_failed=retry_failed) as work:
        return _run(suite, work)


def _run(suite: SuiteConfig, work: Work) -> tuple[Record, ...]:
    plugins = work.plugins
    configs = expand(suite)
    choices: dict[str, Tuning] = {}
    if suite.tuning is not None:
        check_score(suite.tuning, KnownScores(plugins))
        plan(configs, plugins=plugins)  # an unknown name ends the suite before the search
        choices = _tune(configs, suite.tuning, work)
        configs = tuple(_tuned(config, choices.get(_row_of(config))) for config in configs)
    planned = plan(configs, plugins=plugins, records=work.records)
    for (backbone, strategy), reason in planned.unsupported.items():
        _logger.info("left out: %s on %s: %s", strategy, backbone, reason)
    results = work.do_all(
        [
            Task(run, f"[{number}/{len(planned.runs)}]", choices.get(_row_of(run.config)))
            for number, run in enumerate(planned.runs, start=1)
        ]
    )
    if suite.timing is not None:
        _time(list(zip(planned.runs, results, strict=True)), suite.timing, work)
    trained = {run.config.data.model_dump_json(): run.config for run in planned.runs if run.config.strategy != "zero-shot"}
    for config in trained.values():
        results += run_baselines(config, work.out, plugins=plugins, leases=work.leases())
    return tuple(results)


def _row_of(config: RunConfig) -> str:
    """The settings that runs of one grid row share: all but the seed and the learning rate, which is chosen per row."""
    return config.model_copy(
        update={"seed": 0, "train": config.train.model_copy(update={"learning_rate": None})}
    ).model_dump_json()


def _tune(configs: Sequence[RunConfig], tuning: TuningConfig, work: Work) -> dict[str, Tuning]:
    """The learning rate chosen for each row of the grid; none if the row trains nothing or all of its trials failed."""
    rows: dict[str, tuple[RunConfig, ...]] = {}
    for config in configs:
        strategy = get_strategy(config.strategy, config.strategy_options, plugins=work.plugins)
        if _row_of(config) not in rows and strategy.trains:
            rows[_row_of(config)] = trials(config, strategy, tuning)
    work = work.below(TUNING)
    every = [tried for candidates in rows.values() for tried in candidates]
    planned = plan(every, plugins=work.plugins, records=work.records).runs
    ids = {run.config.model_dump_json(): run for run in planned}
    runs = {
        row: [ids[key] for tried in candidates if (key := tried.model_dump_json()) in ids] for row, candidates in rows.items()
    }
    tasks = [
        Task(run, f"[tuning {number}/{len(rows)}] {_rate(run)}:")
        for number, several in enumerate(runs.values(), start=1)
        for run in several
    ]
    done = iter(work.do_all(tasks))
    choices = {}
    for row, several in runs.items():
        records = [next(done) for _ in several]
        choice = choose(records, tuning, KnownScores(work.plugins))
        name = rows[row][0].strategy
        if choice is not None:
            choices[row] = choice
            scores = ", ".join(f"{rate:g}: {'failed' if score is None else f'{score:.3f}'}" for rate, score, _ in choice.tried)
            edge = f"; the {choice.at_edge} tried, so a better one may lie beyond" if choice.at_edge else ""
            _logger.info("%s: learning rate %g by %s (%s)%s", name, choice.chosen, choice.score, scores, edge)
        elif records:
            _logger.info("%s: every trial failed; its runs use their configured rate", name)
    return choices


def _rate(run: PlannedRun) -> str:
    return f"learning rate {run.config.train.learning_rate:g}"


def _tuned(config: RunConfig, choice: Tuning | None) -> RunConfig:
    if choice is None:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": choice.chosen})})


def _time(runs: Sequence[tuple[PlannedRun, Record]], timing: TimingConfig, work: Work) -> None:
    """Time some steps of each trained run of the first seed; the whole grid runs `timing.repeats` times.

    One harness does all of it, since runs side by side would disturb each other.
    """
    trained = [
        run for run, record in runs if record.status == "ok" and record.steps and run.config.seed == runs[0][0].config.seed
    ]
    tasks = []
    for repeat in range(timing.repeats):
        for number, run in enumerate(trained, start=1):
            off = {"report_to": (), **dict.fromkeys(("best_by", "patience", "eval_steps", "max_validation_images"))}
            train = run.config.train.model_copy(update={"max_steps": timing.steps, "num_train_epochs": 1.0, **off})
            short = PlannedRun(run.config.model_copy(update={"train": train}), timing_id(run.run_id, repeat))
            tasks.append(Task(short, f"[timing {repeat + 1}/{timing.repeats}, {number}/{len(trained)}]", evaluate=False))
    work = work.below(TIMING)
    with work.leases().wait(ALL, lambda owner: _logger.info("timing: left to %s, which does it", owner)) as lease:
        work.do_all(tasks)
        lease.finished = True
