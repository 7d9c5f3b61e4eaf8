"""Reads the records of results folders: of `medgraft bench`, of a single run, or of several together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medgraft.benchmark.record import BASELINE, BASELINES, RECORD, Record, read_record
from medgraft.errors import ConfigError

_logger = logging.getLogger(__name__)


def read_records(folder: Path) -> tuple[Record, ...]:
    """The records of a `medgraft bench` folder, or of a single run and its baselines, by backbone, data, strategy and seed.

    `folder / record.adapter` is the folder of a run's captions. Files that are no record are left out with a warning each;
    ConfigError if there is no record.
    """
    if (folder / RECORD).is_file() and not (folder / "records").is_dir():
        below = _read_all(folder / BASELINES)[0]
        return (read_record(folder / RECORD), *(_moved(record, Path(BASELINES)) for record in below))
    if folder.is_file():
        raise ConfigError(f"{folder} is a file. Name the folder that `medgraft bench` or `medgraft train` wrote.")
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder} with records. `medgraft bench SUITE --out {folder}` makes one.")
    records, problems = _read_all(folder)
    if not records:
        found = f": {problems[0]}" if problems else f". `medgraft bench SUITE --out {folder}` makes them."
        raise ConfigError(f"{folder} holds no records{found}")
    for problem in problems:
        _logger.warning("left out: %s", problem)
    return tuple(sorted(records, key=lambda r: (r.backbone, r.data, r.strategy, r.seed)))


def read_all_records(folders: Sequence[Path]) -> tuple[Record, ...]:
    """The records of several folders; of runs that are in more than one, the first, with a warning.

    Their `adapter` is the whole path of a run's folder if there are several folders.
    """
    if len(folders) == 1:
        return read_records(folders[0])
    found: dict[str, Record] = {}
    again = []
    for folder in folders:
        for record in read_records(folder):
            if record.run_id in found and record.backbone != BASELINE:
                again.append(f"{record.backbone} {record.strategy} seed {record.seed} of {folder}")
            if record.backbone != BASELINE or not any(_same_baseline(record, other) for other in found.values()):
                found.setdefault(record.run_id, _moved(record, folder.resolve()))
    if again:
        _logger.warning("left out, as an earlier folder has the same run: %s", ", ".join(again))
    return tuple(found.values())


def unreadable_records(folder: Path) -> tuple[str, ...]:
    """For each file among the records of a `medgraft bench` folder that is no record, which and why."""
    return tuple(_read_all(folder)[1])


def _same_baseline(one: Record, other: Record) -> bool:
    """Whether two runs of one data set have the same baseline, which does not depend on their other settings."""
    about = [(record.backbone, record.strategy, record.data, record.metrics) for record in (one, other)]
    return about[0] == about[1]


def _moved(record: Record, folder: Path) -> Record:
    return record.model_copy(update={"adapter": str(folder / (record.adapter or ""))})


def _read_all(folder: Path) -> tuple[list[Record], list[str]]:
    """The records, and why the other files are none."""
    inner = folder / "records"
    records, problems = [], []
    for path in sorted((inner if inner.is_dir() else folder).glob("*.json")):
        try:
            records.append(read_record(path))
        except ConfigError as error:
            problems.append(str(error))
    return records, problems
