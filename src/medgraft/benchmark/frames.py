"""Results as pandas frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from medgraft.benchmark.record import Record
from medgraft.benchmark.results_reading import read_records
from medgraft.metrics import Scores
from medgraft.scoring import RunCaptions


def records_frame(records: str | Path | Iterable[Record]) -> pd.DataFrame:
    """One row for each run: of `records`, or of a folder that `medgraft bench` or `medgraft train` wrote.

    The columns are the fields of Record; those inside of others have names such as `metrics.cider`.
    """
    found = read_records(Path(records)) if isinstance(records, str | Path) else records
    return pd.json_normalize([record.model_dump(mode="json") for record in found])


def images_frame(captions: RunCaptions, scores: Scores) -> pd.DataFrame:
    """One row for each image, by id: `caption`, `references`, `group` and the image's own scores; NaN where it has none."""
    columns = {
        "caption": [captions.predictions[key] for key in captions.ids],
        "references": [captions.references[key] for key in captions.ids],
        "group": captions.group_names(),
    }
    own = {name: values for measured in scores.measured.values() for name, values in measured.per_image.items()}
    return pd.DataFrame({**columns, **own}, index=pd.Index(captions.ids, name="id"))
