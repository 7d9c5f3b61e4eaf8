"""Pointing scores of strategies as a Markdown table, with intervals and the scores of chance and an untrained decoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medgraft.escaping import markdown_text
from medgraft.report.results import Entry, Group

# heading, score; of images with one finding, and of images with boxes by name
_TABLES = (
    (
        ("finding: hit", "pointing_finding"), ("energy", "energy_finding"), ("IoU", "iou_finding"),
        ("side: hit", "pointing_side"), ("site: hit", "pointing_site"),
    ),
    (
        ("named in answer: hit", "pointing_answer"), ("energy", "energy_answer"), ("IoU", "iou_answer"),
        ("named in question: hit", "pointing_asked"), ("energy", "energy_asked"),
    ),
)  # fmt: skip
_Columns = Sequence[tuple[str, str]]
_CURVES = ("deletion", "insertion")


def attention_markdown(groups: Sequence[Group]) -> str:
    """A table for each group that has maps for known boxes; empty if none has."""
    return "\n\n".join(_table(group, columns) for group in groups for columns in _TABLES if with_maps(group, columns))


def with_maps(group: Group, columns: _Columns = _TABLES[0] + _TABLES[1]) -> list[Entry]:
    """The entries with pointing scores, those of `columns` or any."""
    return [entry for entry in group.entries if any(entry.seeds(score) for _, score in columns)]


def _table(group: Group, columns: _Columns) -> str:
    entries = sorted(with_maps(group, columns), key=lambda entry: -float(np.mean(entry.values(columns[0][1]) or [0])))
    curves = [name for name in _CURVES if any(entry.seeds(name) for entry in entries)]
    headings = [heading for heading, _ in columns] + [f"{name} (random)" for name in curves]
    lines = [f"| strategy | {' | '.join(headings)} |", "|---" + "|---:" * len(headings) + "|"]
    for entry in entries:
        cells = [_with_interval(group, entry, score) for _, score in columns]
        cells += [_beside_random(entry, name) for name in curves]
        lines.append(f"| {markdown_text(entry.name)} | {' | '.join(cells)} |")
    blank = " | -" * len(curves)
    for name, control in (("no preference", "uniform"), ("untrained decoder", "untrained")):
        ranges = [_range(entries, f"{score}_{control}") for _, score in columns]
        lines.append(f"| *{name}* | {' | '.join(ranges)}{blank} |")
    backbones = ", ".join(dict.fromkeys(entry.backbone for entry in entries))
    where = markdown_text(f"{backbones} on {group.data}")
    return "\n".join([f"**Attention of {where}, teacher-forced with the reference**", "", *lines])


def _with_interval(group: Group, entry: Entry, score: str) -> str:
    interval = group.interval(entry, score)
    if interval is None:
        return "-"
    return f"{float(np.mean(entry.values(score))):.2f} ({interval.low:.2f}-{interval.high:.2f})"


def _beside_random(entry: Entry, name: str) -> str:
    if not entry.seeds(name):
        return "-"
    return f"{float(np.mean(entry.values(name))):.3f} ({float(np.mean(entry.values(f'{name}_random'))):.3f})"


def _range(entries: Sequence[Entry], score: str) -> str:
    """Lowest and highest mean over the entries, whose vision towers and patches may differ."""
    means = [float(np.mean(entry.values(score))) for entry in entries if entry.seeds(score)]
    if not means:
        return "-"
    low, high = f"{min(means):.2f}", f"{max(means):.2f}"
    return low if low == high else f"{low} to {high}"
