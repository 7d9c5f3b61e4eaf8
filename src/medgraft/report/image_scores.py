"""The scores of single images as a CSV file inside the page."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from medgraft.escaping import spreadsheet_cell
from medgraft.report.results import Entry
from medgraft.report.subgroups import Subgroup

_MOST_BYTES = 12_000_000  # in a page


def image_scores(entries: Sequence[Entry], parts: Sequence[Subgroup]) -> dict[str, Any]:
    """A CSV file with a row for each image and run, as `uri`; `lacks` says what was left out so that it fits in the page."""
    rows, content = _csv(entries, parts, seeds=None, texts=True)
    lacks = ""
    if len(content) > _MOST_BYTES:
        rows, content, lacks = *_csv(entries, parts, seeds=None, texts=False), "captions and references"
    if len(content) > _MOST_BYTES:
        rows, content, lacks = *_csv(entries, parts, seeds=1, texts=False), "captions, references and all seeds but the first"
    uri = "data:text/csv;charset=utf-8;base64," + base64.b64encode(content).decode()
    return {"uri": uri, "rows": rows, "kilobytes": math.ceil(len(content) / 1024), "lacks": lacks}


def _csv(entries: Sequence[Entry], parts: Sequence[Subgroup], *, seeds: int | None, texts: bool) -> tuple[int, bytes]:
    """The number of rows, and the file."""
    rows = _rows(entries, parts, seeds, texts)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: spreadsheet_cell(value) for name, value in row.items()} for row in rows)
    return len(rows), file.getvalue().encode()


def _rows(entries: Sequence[Entry], parts: Sequence[Subgroup], seeds: int | None, texts: bool) -> list[dict[str, Any]]:
    of_image: dict[int, dict[str, list[str]]] = {}
    for part in parts:
        for image in part.images:
            of_image.setdefault(image, {}).setdefault(part.field, []).append(part.value)
    fields = dict.fromkeys(part.field for part in parts)
    rows = []
    for entry in entries:
        for record, captions, measured in list(zip(entry.records, entry.captions, entry.measured, strict=True))[:seeds]:
            scores = {name: each.per_image[name] for name, each in measured.items() if name in each.per_image}
            for i, key in enumerate(captions.ids):
                row: dict[str, Any] = {"id": key, "strategy": entry.name, "seed": record.seed}
                row |= {"group": captions.groups.get(key)} if any(captions.groups.values()) else {}
                row |= {field: "; ".join(of_image.get(i, {}).get(field, ())) for field in fields}
                if texts:
                    row |= {"prediction": captions.predictions[key], "reference": " | ".join(captions.references[key])}
                rows.append(row | {n: round(float(v[i]), 4) if math.isfinite(v[i]) else None for n, v in scores.items()})
    return rows
