"""Writes predictions in the layouts of others: ImageCLEFmedical's submissions, and R2Gen's `res.csv` and `gts.csv`."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from medgraft.errors import ConfigError, ScoringError
from medgraft.scoring.pairs import Source, pair, predictions_of

_logger = logging.getLogger(__name__)
LAYOUTS = ("imageclef", "r2gen")


def export_predictions(layout: str, out: Path, predictions: Source, references: Source | None = None) -> tuple[Path, ...]:
    """Write predictions, a file or {id: caption}, in one of LAYOUTS; the files written.

    imageclef: the file `out` with the columns ID and Caption, without references. r2gen: in the folder `out` `res.csv` with a
    report a line, `gts.csv` with its reference and `ids.csv` with its id, all in the same order and without a header.
    """
    if layout == "imageclef":
        if references is not None:
            raise ConfigError("Layout imageclef has no references. Leave them out.")
        if out.suffix != ".csv":
            raise ConfigError(f"{out} should be a file that ends in .csv.")
        return (_write(out, [("ID", "Caption"), *predictions_of(predictions).items()]),)
    if layout != "r2gen":
        raise ConfigError(f"Layout {layout!r} is unknown; it must be {' or '.join(LAYOUTS)}.")
    if out.is_file():
        raise ConfigError(f"{out} is a file. Layout r2gen writes several files: name a folder.")
    captions, notes = pair(predictions, references, allow_missing=False)
    if several := [key for key in captions.ids if len(captions.references[key]) > 1]:
        raise ScoringError(f"{len(several)} ids, such as {several[0]!r}, have several references; R2Gen's layout takes one.")
    for note in notes:
        _logger.info("%s", note)
    columns = {
        "res.csv": [captions.predictions[key] for key in captions.ids],
        "gts.csv": [captions.references[key][0] for key in captions.ids],
        "ids.csv": captions.ids,
    }
    return tuple(_write(out / name, [(text,) for text in texts]) for name, texts in columns.items())


def _write(path: Path, rows: Iterable[Sequence[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path
