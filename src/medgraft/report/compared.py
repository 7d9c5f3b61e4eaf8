"""What `medgraft compare` takes: runs in a results folder, a single run's folder, or a file of captions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medgraft.benchmark import BASELINE, Record, RunCaptions, read_captions, read_record, read_records
from medgraft.benchmark.record import RECORD
from medgraft.config import METRICS
from medgraft.errors import ConfigError, ScoringError
from medgraft.metrics import Scores, measure
from medgraft.plugin import KnownScores, PluginManager
from medgraft.report.results import repeats
from medgraft.scoring.files import read_file
from medgraft.scoring.pairs import pair
from medgraft.scoring.run_captions import PREDICTIONS_FILE

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Compared:
    """One strategy with the captions of each seed; or a `file` of captions alone, to be given the other side's references."""

    name: str
    metrics: tuple[str, ...]
    captions: tuple[RunCaptions, ...] = ()
    file: Path | None = None
    is_baseline: bool = False
    alone: bool = True  # a single run or file, not one of a results folder

    def beside(self, other: Compared) -> Compared:
        """This one; the captions of a file get the references, groups and facts of `other`, on whose images they have to be."""
        if self.file is None:
            return self
        if not other.captions:
            raise ConfigError(
                f"{self.file} and {other.file} hold captions alone. Name what they are scored against: --references FILE"
            )
        known = other.captions[0]
        found, _ = pair(self.file, known.references, allow_missing=True)
        return replace(self, captions=(replace(known, predictions=found.predictions, saliency={}),), file=None)

    def same_images(self, other: Compared) -> bool:
        """Whether both were scored on the same images and references."""
        a, b = self.captions[0], other.captions[0]
        return a.ids == b.ids and all(a.references.get(key) == b.references.get(key) for key in a.ids)

    def measured(self, wanted: tuple[str, ...], plugins: PluginManager) -> tuple[Scores, ...]:
        """The scores `wanted` of each seed, by the metrics that report them, or by all of the run where that is not known."""
        known = KnownScores(plugins)
        providers = [known.metric_of(score) for score in wanted]
        own = [name for name in self.metrics if name.partition(":")[0] in providers or None in providers]
        names = {name.partition(":")[0] for name in own}
        metrics = (*own, *(name for name in dict.fromkeys(providers) if name and name not in names))
        return tuple(measure(each.caption_set(), metrics=metrics, plugins=plugins) for each in self.captions)


def read_compared(path: Path, references: Path | None) -> dict[str, Compared]:
    """What `path` holds, by name. ConfigError or ScoringError if it holds no captions."""
    if path.is_file():
        return _of_file(path, references)
    single = read_captions(path)
    if single is not None:
        record = read_record(path / RECORD) if (path / RECORD).is_file() else None
        name = f"{record.backbone} {record.strategy} on {record.data}" if record else path.resolve().name
        return {name: Compared(name, record.config.metrics if record else METRICS, (single,))}
    found = _of_results(path)
    if not found:
        raise ConfigError(f"{path} holds no captions: neither predictions.json nor runs/*/predictions.json.")
    return found


def _of_file(path: Path, references: Path | None) -> dict[str, Compared]:
    run = read_file(path).run
    if run is None and references is not None:
        run, notes = pair(path, references, allow_missing=False)
        for note in notes:
            _logger.info("%s", note)
    name = path.name if path.name != PREDICTIONS_FILE else path.resolve().parent.name
    return {name: Compared(name, METRICS, (run,)) if run else Compared(name, METRICS, file=path)}


def _of_results(folder: Path) -> dict[str, Compared]:
    records = [record for record in read_records(folder) if record.status == "ok"]
    several: dict[tuple[str, int], list[tuple[int, RunCaptions]]] = {}
    about: dict[tuple[str, int], Record] = {}
    for record, key in zip(records, repeats(records), strict=True):
        try:
            captions = read_captions(folder / (record.adapter or ""))
        except ScoringError as error:
            _logger.warning("left out: %s", error)
            continue
        if captions is not None:
            several.setdefault(key, []).append((record.seed, captions))
            about.setdefault(key, record)
    found: dict[str, Compared] = {}
    for key, runs in several.items():
        record = about[key]
        name = f"{record.backbone} {record.strategy} on {record.data}"
        alike = sum(known == name or known.startswith(f"{name} (") for known in found)
        name = f"{name} ({alike + 1})" if alike else name
        seeds = tuple(each for _, each in sorted(runs, key=lambda run: run[0]))
        found[name] = Compared(name, record.config.metrics, seeds, is_baseline=record.backbone == BASELINE, alone=False)
    return found


def pairs(before: Mapping[str, Compared], after: Mapping[str, Compared]) -> list[tuple[Compared, Compared]]:
    """What is compared with what: those of one name; else a run or file with all that models made on the other side."""
    one, many = ([*side.values()] for side in (before, after))
    if len(one) == len(many) == 1:
        return [(one[0], many[0])]
    if common := [(before[name], after[name]) for name in before if name in after]:
        return common
    if not (one[0].alone or many[0].alone):
        return []
    return [(a, b) for a in one for b in many if not (a.is_baseline or b.is_baseline)]
