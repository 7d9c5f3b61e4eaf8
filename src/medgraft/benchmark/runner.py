"""Running a suite: each missing run in its own process, its record kept, failures included."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medgraft.benchmark.baselines import run_baselines
from medgraft.benchmark.plan import PlannedRun, plan
from medgraft.benchmark.record import Record, Tuning, read_record, write_record
from medgraft.benchmark.run import failed_record
from medgraft.benchmark.suite import expand
from medgraft.benchmark.timing import TIMING, timing_id
from medgraft.benchmark.tuning import choose, trials
from medgraft.benchmark.workers import Worker
from medgraft.config import RunConfig, SuiteConfig, TimingConfig, TuningConfig
from medgraft.plugin import PluginManager
from medgraft.strategies import get_strategy


def run_suite(
    suite: SuiteConfig,
    out: Path,
    *,
    plugins: PluginManager,
    retry_failed: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Record, ...]:
    """Do every run of `suite` that has no record in `out/records` yet; the records of all its runs, in its order.

    Learning rates are chosen first where the suite wants that, in `out/tuning`, and steps timed at the end, in `out/timing`.
    Records of the baselines follow, for each data set that something was trained on.

    Pairs of backbone and strategy that cannot be run are left out, and `say` is told why.
    """
    with Worker() as worker:
        return _run_suite(suite, _Work(out, worker, plugins, retry_failed, progress, say))


def _run_suite(suite: SuiteConfig, work: _Work) -> tuple[Record, ...]:
    configs, plugins, say = expand(suite), work.plugins, work.say
    choices: dict[str, Tuning] = {}
    if suite.tuning is not None:
        plan(configs, plugins=plugins)  # what is misspelt ends the suite before the search
        choices = _tune(configs, suite.tuning, work)
        configs = tuple(_tuned(config, choices.get(_row_of(config))) for config in configs)
    planned = plan(configs, plugins=plugins)
    for (backbone, strategy), reason in planned.unsupported.items():
        say(f"left out: {strategy} on {backbone}: {reason}")
    results = []
    for number, run in enumerate(planned.runs, start=1):
        choice = choices.get(_row_of(run.config))
        results.append(work.do(run, f"[{number}/{len(planned.runs)}]", tuning=choice))
    if suite.timing is not None:
        _time(list(zip(planned.runs, results, strict=True)), suite.timing, work)
    trained = {run.config.data.model_dump_json(): run.config for run in planned.runs if run.config.strategy != "zero-shot"}
    for config in trained.values():
        results += run_baselines(config, work.out, plugins=plugins)
    return tuple(results)


@dataclass(frozen=True)
class _Work:
    """Where runs go, who does them and what is said of them."""

    out: Path
    worker: Worker
    plugins: PluginManager
    retry_failed: bool
    progress: bool
    say: Callable[[str], None]

    def below(self, name: str) -> _Work:
        """The same with its records and files in a folder of their own."""
        return replace(self, out=self.out / name)

    def do(self, run: PlannedRun, number: str, *, tuning: Tuning | None = None, evaluate: bool = True) -> Record:
        """The record of `run`, done now if there is none yet."""
        path = self.out / "records" / f"{run.run_id}.json"
        name = f"{number} {run.config.backbone} {run.config.strategy} seed {run.config.seed}"
        known = read_record(path) if path.is_file() else None
        if known is not None and (known.status == "ok" or not self.retry_failed):
            self.say(f"{name}: done before" + (" (failed; --retry-failed tries again)" if known.status == "failed" else ""))
            return known
        self.say(name)
        record = _run(run, self.out, self.worker, self.progress, tuning=tuning, evaluate=evaluate)
        if record.status == "failed":
            self.say(f"  failed: {record.error}")
        return record


def _row_of(config: RunConfig) -> str:
    """What runs share whose learning rate is chosen together: all but the seed and the rate itself."""
    return config.model_copy(
        update={"seed": 0, "train": config.train.model_copy(update={"learning_rate": None})}
    ).model_dump_json()


def _tune(configs: Sequence[RunConfig], tuning: TuningConfig, work: _Work) -> dict[str, Tuning]:
    """The learning rate chosen for each row of the grid; none for a row that trains nothing or whose tries all failed."""
    rows: dict[str, tuple[RunConfig, ...]] = {}
    for config in configs:
        strategy = get_strategy(config.strategy, config.strategy_options, plugins=work.plugins)
        if _row_of(config) not in rows and strategy.trains:
            rows[_row_of(config)] = trials(config, strategy, tuning)
    planned = plan([tried for several in rows.values() for tried in several], plugins=work.plugins).runs
    ids = {run.config.model_dump_json(): run for run in planned}
    choices = {}
    for number, (row, several) in enumerate(rows.items(), start=1):
        runs = [ids[tried.model_dump_json()] for tried in several if tried.model_dump_json() in ids]
        records = [work.below("tuning").do(run, f"[tuning {number}/{len(rows)}] {_rate(run)}:") for run in runs]
        choice = choose(records, tuning)
        if choice is not None:
            choices[row] = choice
            scores = ", ".join(f"{rate:g}: {'failed' if score is None else f'{score:.3f}'}" for rate, score, _ in choice.tried)
            work.say(f"  {several[0].strategy}: learning rate {choice.chosen:g} by {choice.score} ({scores})")
        elif records:
            work.say(f"  {several[0].strategy}: every try failed; its runs use the rate that they have")
    return choices


def _rate(run: PlannedRun) -> str:
    return f"learning rate {run.config.train.learning_rate:g}"


def _tuned(config: RunConfig, choice: Tuning | None) -> RunConfig:
    if choice is None:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": choice.chosen})})


def _time(runs: Sequence[tuple[PlannedRun, Record]], timing: TimingConfig, work: _Work) -> None:
    """Time some steps of each run of the first seed that trained, the whole grid over and over."""
    trained = [
        run for run, record in runs if record.status == "ok" and record.steps and run.config.seed == runs[0][0].config.seed
    ]
    for repeat in range(timing.repeats):
        for number, run in enumerate(trained, start=1):
            train = run.config.train.model_copy(update={"max_steps": timing.steps, "num_train_epochs": 1.0})
            short = PlannedRun(run.config.model_copy(update={"train": train}), timing_id(run.run_id, repeat))
            work.below(TIMING).do(short, f"[timing {repeat + 1}/{timing.repeats}, {number}/{len(trained)}]", evaluate=False)


def _run(planned: PlannedRun, out: Path, worker: Worker, progress: bool, *, tuning: Tuning | None, evaluate: bool) -> Record:
    records, folder = out / "records", out / "runs" / planned.label
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.json"
    content = {
        "config": planned.config.model_dump(mode="json"), "run_id": planned.run_id, "label": f"runs/{planned.label}",
        "out": str(folder), "records": str(records), "progress": progress, "tuning": tuning.model_dump() if tuning else None, "evaluate": evaluate,
    }  # fmt: skip
    job.write_text(json.dumps(content), encoding="utf-8")
    code, tail = worker.do(job)
    path = records / f"{planned.run_id}.json"
    if path.is_file():
        return read_record(path)
    # the process died before it could say why: killed for memory, or a crash in native code
    error = f"the run's process ended with code {code}: {tail or 'no output'}"
    record = failed_record(planned.config, error).model_copy(update={"run_id": planned.run_id, "tuning": tuning})
    write_record(record, records)
    return record
