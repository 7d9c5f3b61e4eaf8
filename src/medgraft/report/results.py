"""Results read from disk for reports: strategies with their seeds, scored again from their captions."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medgraft.benchmark import BASELINE, Record, RunCaptions, StepTime, read_captions, read_records, step_time
from medgraft.errors import ScoringError
from medgraft.metrics import Measured, measure
from medgraft.plugin import KnownScores, PluginManager
from medgraft.stats import ALPHA, Difference, Interval, Resampling, Standing, bca, frontier, holm, standing

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One strategy on one backbone and data set: its successful runs by seed, each with its measurements."""

    backbone: str
    data: str
    strategy: str
    records: tuple[Record, ...]
    captions: tuple[RunCaptions, ...]
    measured: tuple[dict[str, Measured], ...]  # of each seed, by score name
    name: str  # the strategy, and the backbone if a group has several
    step: StepTime | None

    @property
    def tuning_seconds(self) -> float | None:
        """Seconds of the search for the learning rate; None if there was none."""
        tuning = self.records[0].tuning
        return tuning.seconds if tuning else None

    def seeds(self, score: str) -> list[Measured]:
        """Measurements for `score`, one for each seed that has it."""
        return [each[score] for each in self.measured if score in each]

    def values(self, score: str) -> list[float]:
        """The score of each seed."""
        return [measured.scores[score] for measured in self.seeds(score)]

    def mean(self, field: str) -> float | None:
        """The mean over seeds of a numeric field of their records."""
        known = [value for record in self.records if (value := getattr(record, field)) is not None]
        return float(np.mean(known)) if known else None

    def phase(self, name: str) -> float:
        """Mean seconds of a phase."""
        return float(np.mean([(record.phase_seconds or {}).get(name, 0.0) for record in self.records]))


@dataclass(frozen=True)
class Group:
    """Entries on the same test images; only these can be compared."""

    data: str
    entries: tuple[Entry, ...]
    resampling: Resampling
    scores: KnownScores
    _differences: dict[str, dict[tuple[str, str], tuple[Difference, float]]] = field(default_factory=dict, repr=False)

    @property
    def main(self) -> str:
        """The score that orders the entries."""
        return self.scores.main(name for entry in self.entries for each in entry.measured for name in each)

    def interval(self, entry: Entry, score: str) -> Interval | None:
        """Interval of the mean over seeds, for resampled test images alone; None without such a score, or if it has none."""
        seeds = entry.seeds(score)
        if not seeds or not all(measured.resampled for measured in seeds):
            return None
        draws, left_out = self.resampling.mean_draws(seeds, score), self.resampling.mean_left_out(seeds, score)
        return bca(float(np.mean(entry.values(score))), draws, left_out)

    def differences(self, score: str) -> dict[tuple[str, str], tuple[Difference, float]]:
        """For each pair of entries: the first's score minus the second's, and its p-value, Holm-corrected for all pairs."""
        if score not in self._differences:
            having = [entry for entry in self.entries if entry.seeds(score)]
            found = {
                (a.name, b.name): self.resampling.difference(a.seeds(score), b.seeds(score), score)
                for a, b in itertools.combinations(having, 2)
            }
            corrected = holm({json.dumps(pair): difference.p for pair, difference in found.items()})
            self._differences[score] = {pair: (each, corrected[json.dumps(pair)]) for pair, each in found.items()}
        return self._differences[score]

    def standing(self, entry: Entry, score: str) -> Standing | None:
        """How an entry's `score` stands against captions that ignore the image; None if it or they lack the score."""
        floor = {other.name for other in self.entries if other.backbone == BASELINE and other.seeds(score)} - {entry.name}
        if not floor or entry.backbone == BASELINE or not entry.seeds(score) or not self.scores[score].sign:
            return None
        found = self.differences(score)
        pairs = [
            (1, found[entry.name, name]) if (entry.name, name) in found else (-1, found[name, entry.name]) for name in floor
        ]
        return standing([(sign * difference.value, p) for sign, (difference, p) in pairs], self.scores[score].sign)

    def best(self, score: str) -> set[str]:
        """Names of the entries with the best `score` and of all that are not significantly worse.

        None that is not better than captions that ignore the image, by this score or, if they lack it, by the main one; none
        where this cannot be tested.
        """
        models = [entry for entry in self.entries if entry.backbone != BASELINE]
        if len(models) < 2 or not all(measured.resampled for entry in models for measured in entry.seeds(score)):
            return set()
        return self.ties(
            score, [e for e in models if (self.standing(e, score) or self.standing(e, self.main)) in ("better", None)]
        )

    def frontier(self, score: str) -> dict[str, float]:
        """For each trained entry, its probability of being Pareto-optimal in score and training time, by resampling.

        Resamples test images, and seeds with their scores and times together.
        """
        trained = [entry for entry in self.entries if entry.seeds(score) and entry.mean("training_seconds")]
        if not trained or not self.scores[score].sign:
            return {}
        rng = np.random.default_rng(0)
        quality, cost = [], []
        for entry in trained:
            draws = np.stack([self.resampling.draws(m)[score] for m in entry.seeds(score)])  # [seeds, R]
            seconds = np.array([record.training_seconds or 0.0 for record in entry.records])
            chosen = rng.integers(0, len(draws), draws.shape)
            quality.append(np.take_along_axis(draws, chosen, axis=0).mean(axis=0) * self.scores[score].sign)
            cost.append(seconds[chosen].mean(axis=0))
        return {e.name: float(s) for e, s in zip(trained, frontier(np.stack(quality), np.stack(cost)), strict=True)}

    def ties(self, score: str, among: Sequence[Entry] | None = None) -> set[str]:
        """Names of the entry with the best score and of all that are not significantly worse, `among` some or all."""
        among = self.entries if among is None else among
        having = {entry.name: float(np.mean(entry.values(score))) for entry in among if entry.seeds(score)}
        sign = self.scores[score].sign
        if not having or not sign:
            return set()
        best = max(having, key=lambda name: sign * having[name])
        pairs = self.differences(score)
        return {best} | {
            name for pair, (_, p) in pairs.items() if best in pair and p >= ALPHA for name in pair if name in having
        }


def read_results(folder: Path, *, plugins: PluginManager, records: Sequence[Record] | None = None) -> tuple[Group, ...]:
    """Groups of all successful runs with captions in a folder of `medgraft bench`; `records` are its records if read already.

    Captions that cannot be read are left out with a warning.
    """
    runs = []
    for record in read_records(folder) if records is None else records:
        try:
            captions = read_captions(folder / (record.adapter or "")) if record.status == "ok" else None
        except ScoringError as error:
            _logger.warning("left out: %s", error)
            continue
        if captions is not None:
            runs.append((record, captions))
    return groups(runs, folder, plugins=plugins)


def repeats(records: Iterable[Record]) -> list[tuple[str, int]]:
    """For each record its settings, and how many before it have them and its seed: these are no further seeds of one entry."""
    seen: Counter[tuple[str, int]] = Counter()
    keys = []
    for record in records:
        keys.append((record.settings, seen[record.settings, record.seed]))
        seen[record.settings, record.seed] += 1
    return keys


def groups(runs: Iterable[tuple[Record, RunCaptions]], folder: Path, *, plugins: PluginManager) -> tuple[Group, ...]:
    """Groups runs by test images, and into entries by settings without the seed. Reads step times from `folder`."""
    by_images: dict[tuple[str, ...], list[tuple[Record, RunCaptions]]] = {}
    for record, captions in runs:
        by_images.setdefault((record.data, *captions.ids), []).append((record, captions))
    made = []
    for (data, *_), several in by_images.items():
        entries: dict[tuple[str, int], list[tuple[Record, RunCaptions]]] = {}
        for (record, captions), key in zip(several, repeats(record for record, _ in several), strict=True):
            entries.setdefault(key, []).append((record, captions))
        models = {record.backbone for record, _ in several} - {BASELINE}
        listed: dict[str, Entry] = {}
        for runs in entries.values():
            first = runs[0][0]
            name = first.strategy if len(models) < 2 else f"{first.backbone} {first.strategy}"
            alike = sum(known == name or known.startswith(f"{name} (") for known in listed)  # with other settings
            name = f"{name} ({alike + 1})" if alike else name
            listed[name] = _entry(runs, name, folder, plugins)
        resampling = Resampling(several[0][1].group_names())
        made.append(Group(data, tuple(listed.values()), resampling, KnownScores(plugins)))
    return tuple(made)


def _entry(runs: Sequence[tuple[Record, RunCaptions]], name: str, folder: Path, plugins: PluginManager) -> Entry:
    ordered = sorted(runs, key=lambda run: run[0].seed)
    first = ordered[0][0]
    place = Path(first.adapter or "")
    folder = place.parents[1] if place.is_absolute() else folder  # several results folders are read together
    measured = tuple(measured_scores(captions, first.config.metrics, plugins) for _, captions in ordered)
    return Entry(
        first.backbone, first.data, first.strategy, tuple(record for record, _ in ordered),
        tuple(captions for _, captions in ordered), measured, name, step_time(ordered[0][0], folder),
    )  # fmt: skip


def measured_scores(captions: RunCaptions, metrics: tuple[str, ...], plugins: PluginManager) -> dict[str, Measured]:
    """Measurements of every metric, by the names of its defined scores."""
    found = measure(captions.caption_set(), metrics=metrics, plugins=plugins)
    return {
        name: measured for measured in found.measured.values() for name, value in measured.scores.items() if np.isfinite(value)
    }


def leak_notes(records: Iterable[Record]) -> tuple[str, ...]:
    """What the records say about leaks between splits, and from earlier training, each once."""
    notes = dict[str, None]()
    for record in records:
        dropped = record.data_report.leaking if record.data_report else 0
        left = f" ({dropped} images were left out for it)" if dropped else ""
        if record.leaks:
            notes[f"The splits overlap: {'; '.join(map(str, record.leaks))}{left}."] = None
        if (seen := record.seen_in_training) and (seen.images or seen.groups):
            notes[f"Training went on from an adapter that knows scored images. {seen}"] = None
    return tuple(notes)
