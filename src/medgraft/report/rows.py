"""Records as rows of a table, averaged over seeds and sorted, with the best of each column marked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev

from medgraft.benchmark import BASELINE, Record
from medgraft.plugin import KnownScores, PluginManager, ScoreSpec
from medgraft.report.results import Entry, Group, leak_notes, repeats
from medgraft.report.run_settings import ShownSettings, shown_settings
from medgraft.report.text_notes import cut_off_share, text_notes
from medgraft.stats import Standing, standing

COSTS = ("training_seconds", "trainable_parameters", "peak_memory_bytes", "adapter_bytes", "forgetting")  # less is better


@dataclass(frozen=True)
class Cell:
    """A score, the mean over seeds, with its 95 % interval for other test images and its standard deviation over seeds.

    `best`: it is the best of its column, or not shown to be worse, and better than captions that ignore the image. `controls`
    are what chance gives.
    """

    spec: ScoreSpec
    value: float
    interval: tuple[float, float] | None
    spread: float | None
    best: bool
    controls: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One strategy on one backbone and data set; numbers are means over its seeds, None where unknown.

    `main` names the score that orders the rows, `standing` is how it stands against captions that ignore the image: "better",
    "undecided", "no better", or None where there are none. `best_costs` are the fields of COSTS in which this row is the least
    of those that trained and beat such captions. `step` is a step's median seconds with quartiles; `disturbed` means that other
    work ran on the machine. `tuning_seconds` is the time of the search for the learning rate, which `training_seconds`
    excludes; `rate_at_edge` says that the chosen rate is the highest or lowest tried. `leaks` says how the splits overlap.
    `cut_off` is the share of generated captions that reached `generation.max_new_tokens`, `text_notes` are warnings about
    captions' lengths and unknown tokens. `forgetting` is the rise of the loss on the base's captions of general images.
    """

    backbone: str
    data: str
    strategy: str
    seeds: int
    failed: int
    scores: Mapping[str, Cell]
    main: str
    standing: Standing | None = None
    best_costs: frozenset[str] = frozenset()
    training_seconds: float | None = None
    tuning_seconds: float | None = None
    rate_at_edge: str | None = None
    step: tuple[float, float, float] | None = None
    disturbed: bool | None = None
    trainable_parameters: float | None = None
    trainable_share: float | None = None
    peak_memory_bytes: float | None = None
    adapter_bytes: float | None = None
    settings: ShownSettings = field(default_factory=ShownSettings)
    leaks: str | None = None
    cut_off: float | None = None
    text_notes: tuple[str, ...] = ()
    forgetting: float | None = None
    tested: bool = False  # by tests over images and seeds; else marks and standing compare values alone
    run_ids: tuple[str, ...] = ()

    @property
    def is_baseline(self) -> bool:
        """Whether no model made its captions."""
        return self.backbone == BASELINE


def rows(records: Iterable[Record], results: Iterable[Group] = (), *, plugins: PluginManager) -> tuple[Row, ...]:
    """One row for each backbone, test set and settings, the best main score first, failed ones last.

    `results` of the same runs add intervals of the mean over seeds, tests and step times. Data sets of one name with other test
    images are told apart.
    """
    records, scores = list(records), KnownScores(plugins)
    places = _Places(list(results), records)
    grouped: dict[tuple[object, ...], list[Record]] = {}
    for record, key in zip(records, repeats(records), strict=True):
        grouped.setdefault((record.backbone, places.test_set(record), *key), []).append(record)
    labels, made, taken = places.labels(records), dict[object, list[Row]](), set[tuple[object, ...]]()
    for (backbone, test_set, *_), several in grouped.items():
        found = next((places.found[r.run_id] for r in several if r.run_id in places.found), None)
        name = several[0].strategy if found is None else found[1].name.removeprefix(f"{backbone} ")
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        name = next(text for text in itertools.chain([name], numbered) if (backbone, test_set, text) not in taken)
        taken.add((backbone, test_set, name))
        row = _row(labels[test_set], name, several, scores, plugins)
        made.setdefault(test_set, []).append(row if found is None else _with_results(row, *found))
    finished = [row for several in made.values() for row in _marked(several, scores)]
    return tuple(sorted(finished, key=_order))


def _order(row: Row) -> tuple[str, str, bool, float]:
    cell = row.scores.get(row.main)
    return row.backbone, row.data, cell is None, -cell.spec.sign * cell.value if cell else 0.0


class _Places:
    """Which test set a record belongs to, by the captions that were read, or by data set and number of images."""

    def __init__(self, results: Sequence[Group], records: Sequence[Record]):
        self._results = results
        self._counts = {(r.data, count) for r in records if (count := (r.images or {}).get(r.config.eval_split)) is not None}
        self.found = {r.run_id: (group, entry) for group in results for entry in group.entries for r in entry.records}
        self._numbers = {r.run_id: n for n, group in enumerate(results) for entry in group.entries for r in entry.records}

    def test_set(self, record: Record) -> object:
        if record.run_id in self._numbers:
            return self._numbers[record.run_id]
        count = (record.images or {}).get(record.config.eval_split)
        alike = (
            number for number, group in enumerate(self._results)
            if group.data == record.data and count in (None, len(group.entries[0].captions[0].ids))
        )  # fmt: skip
        counts = [known for known in self._counts if known[0] == record.data]
        lost = count is None and len(counts) == 1  # a run that failed before its data were read
        return next(alike, counts[0] if lost else (record.data, count))

    def labels(self, records: Sequence[Record]) -> dict[object, str]:
        """The name of each test set: the data set's, and its place and number of images where two have the same name."""
        first = {self.test_set(record): record for record in reversed(records)}
        names = [record.data for record in first.values()]
        labels = {}
        for number, (test_set, record) in enumerate(first.items(), start=1):
            images, path = (record.images or {}).get(record.config.eval_split), record.config.data.path
            about = ", ".join(filter(None, (Path(path).name if path else None, f"{images} images" if images else f"{number}")))
            labels[test_set] = record.data if names.count(record.data) == 1 else f"{record.data} ({about})"
        return labels


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _row(data: str, name: str, several: Sequence[Record], scores: KnownScores, plugins: PluginManager) -> Row:
    """The row of runs that differ only in their seed, from their records alone."""
    done = [record for record in several if record.status == "ok"]
    tuned = [record.tuning for record in done if record.tuning]
    reported = [name for record in done for name in record.metrics or {}]
    return Row(
        backbone=several[0].backbone,
        data=data,
        strategy=name,
        seeds=len(done),
        failed=len(several) - len(done),
        scores={name: _cell(scores[name], done) for name in scores.shown(reported)},
        main=scores.main(reported),
        training_seconds=_mean(r.training_seconds for r in done),
        tuning_seconds=_mean(tuning.seconds for tuning in tuned),
        rate_at_edge=next((tuning.at_edge for tuning in tuned), None),
        disturbed=any(r.disturbed for r in done) or None,
        trainable_parameters=_mean(r.trainable_parameters for r in done),
        trainable_share=_mean((r.trainable_parameters or 0) / r.total_parameters for r in done if r.total_parameters),
        peak_memory_bytes=_mean(r.peak_memory_bytes for r in done),
        adapter_bytes=_mean(r.adapter_bytes for r in done),
        settings=shown_settings(several[0], plugins),
        leaks=" ".join(leak_notes(done)) or None,
        cut_off=cut_off_share(done),
        text_notes=tuple(text_notes(done)),
        forgetting=_mean(r.forgetting for r in done),
        run_ids=tuple(r.run_id for r in several),
    )


def _cell(spec: ScoreSpec, done: Sequence[Record]) -> Cell:
    values = [value for record in done if (value := (record.metrics or {}).get(spec.name)) is not None]
    controls = {name: _mean((record.metrics or {}).get(name) for record in done) for name in spec.controls}
    return Cell(
        spec, fmean(values), (done[0].intervals or {}).get(spec.name) if len(done) == 1 else None,
        stdev(values) if len(values) > 1 else None, best=False, controls={n: v for n, v in controls.items() if v is not None},
    )  # fmt: skip


def _with_results(row: Row, group: Group, entry: Entry) -> Row:
    """The row with intervals of the mean over seeds, its standing, marks of scores, and step times."""
    cells = {}
    for name, cell in row.scores.items():
        interval = group.interval(entry, name)
        known = (interval.low, interval.high) if interval else cell.interval
        cells[name] = replace(cell, interval=known, best=entry.name in group.best(name))
    step = entry.step
    return replace(
        row, scores=cells, standing=group.standing(entry, row.main), tested=True,
        step=(step.low, step.median, step.high) if step else None,
        disturbed=(step.disturbed or row.disturbed is True) if step else row.disturbed,
    )  # fmt: skip


def _marked(several: Sequence[Row], scores: KnownScores) -> list[Row]:
    """Rows of one test set with one main score; those without captions are compared by their values, then costs by backbone."""
    main = scores.main(name for row in several for name in row.scores)
    floor = [row.scores[main].value for row in several if row.is_baseline and main in row.scores]
    placed = []
    for row in several:
        own, sign = row.scores.get(main), scores[main].sign
        stands = row.standing
        if not row.tested and not row.is_baseline and own and floor and sign:
            stands = standing([(own.value - value, 0.0) for value in floor], sign)
        placed.append(replace(row, main=main, standing=stands))
    done = []
    for row in placed:
        rivals = [other for other in placed if other.backbone == row.backbone and _competes(other)]
        if len([other for other in placed if other.backbone == row.backbone]) < 2 or row not in rivals:
            done.append(row)
            continue
        least = {cost: min((v for r in rivals if (v := getattr(r, cost)) is not None), default=None) for cost in COSTS}
        costs = {cost for cost, value in least.items() if value is not None and getattr(row, cost) == value}
        cells = row.scores if any(r.tested for r in placed) else _best_by_value(row, rivals, placed)
        done.append(replace(row, best_costs=frozenset(costs), scores=cells))
    return done


def _competes(row: Row) -> bool:
    """Whether the row trained and is not known to be no better than captions that ignore the image."""
    return bool(row.trainable_parameters) and row.standing in ("better", None)


def _best_by_value(row: Row, rivals: Sequence[Row], everyone: Sequence[Row]) -> dict[str, Cell]:
    """The row's scores, marked where they are the best value of the column and better than the baselines'."""
    marked = {}
    for name, cell in row.scores.items():
        signed = [cell.spec.sign * other.scores[name].value for other in rivals if name in other.scores]
        floor = [cell.spec.sign * r.scores[name].value for r in everyone if r.is_baseline and name in r.scores]
        own = cell.spec.sign * cell.value
        marked[name] = replace(cell, best=bool(cell.spec.sign) and own == max(signed) and all(own > value for value in floor))
    return marked
