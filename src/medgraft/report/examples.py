"""What each run said of the same few images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medgraft.benchmark import Record


def example_captions(records: Sequence[Record], folder: Path, count: int = 3) -> str:
    """For `count` images spread over the test split: the reference, then the caption of every run of the first seed."""
    said: list[tuple[str, dict[str, str]]] = []
    references: dict[str, list[str]] = {}
    for record in records:
        path = folder / (record.adapter or "") / "predictions.json"
        if record.status != "ok" or record.seed != records[0].seed or not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        said.append((record.strategy, content["predictions"]))
        references |= content["references"]
    ids = sorted(references)
    lines = []
    for key in ids[:: max(1, len(ids) // count)][:count]:
        lines.append(f"{key}: {references[key][0]}")
        lines += [f"  {strategy:<15} {captions.get(key, '')}" for strategy, captions in said]
    return "\n".join(lines)
