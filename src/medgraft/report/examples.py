"""The captions of all runs for the same few images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medgraft.benchmark import BASELINE, Record, read_captions

_MANY = 10  # runs


def example_captions(records: Sequence[Record], folder: Path, count: int = 3) -> str:
    """For some images spread over the test split: the reference, then the caption of every run of the first seed.

    Uses the first data set; shows `count` images, or one if there are many runs.
    """
    wanted = [r for r in records if r.status == "ok" and r.seed == records[0].seed and r.data == records[0].data]
    many = len({record.backbone for record in wanted} - {BASELINE}) > 1
    runs: list[tuple[str, Mapping[str, str]]] = []
    references: dict[str, tuple[str, ...]] = {}
    prompts: dict[str, str] = {}
    for record in wanted:
        captions = read_captions(folder / (record.adapter or ""))
        if captions is not None:
            name = f"{record.backbone.rpartition('/')[2]} {record.strategy}" if many else record.strategy
            runs.append((name, captions.predictions))
            references |= captions.references
            prompts |= captions.prompts
    ids = sorted(references)
    shown = count if len(runs) <= _MANY else 1
    width = max((len(name) for name, _ in runs), default=0)
    lines = []
    for key in ids[:: max(1, len(ids) // shown)][:shown]:
        lines.append(f"{key}: {prompts[key]} {references[key][0]}" if key in prompts else f"{key}: {references[key][0]}")
        lines += [f"  {name:<{width}} {captions.get(key, '')}" for name, captions in runs]
    return "\n".join(lines)
