"""Records as table rows, averaged over seeds and sorted, with the best of each column marked; as text, Markdown or JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import fmean, stdev
from typing import Any

from medgraft.benchmark import BASELINE, Record
from medgraft.escaping import markdown_text, one_line, spreadsheet_cell
from medgraft.report.results import Entry, Group, leak_notes
from medgraft.report.text_notes import cut_off_note, cut_off_share, text_notes


@dataclass(frozen=True)
class Row:
    """One strategy on one backbone and data set; numbers are means over its seeds, None where unknown.

    `cider_interval` is the 95 % interval for other test images; `seed_spread` is CIDEr's standard deviation over seeds. `tied`
    means that this row has the best CIDEr on these images or is not significantly worse, None if unknown. `pointing` is how
    often attention at the finding's words points at the finding (`pointing_finding`), with its interval and two controls.
    `step` is a step's median seconds with quartiles; `disturbed` means that other work ran on the machine. `tuning_seconds` is
    the time of the search for the learning rate, which `training_seconds` excludes. `leaks` says how the splits overlap.
    `cut_off` is the share of generated captions that reached `generation.max_new_tokens`, `text_notes` are warnings about
    captions' lengths and unknown tokens. `forgetting` is the rise of the loss on the base's captions of general images.
    """

    backbone: str
    data: str
    strategy: str
    seeds: int
    failed: int
    cider: float | None
    cider_interval: tuple[float, float] | None
    seed_spread: float | None
    tied: bool | None
    bleu_4: float | None
    rouge_l: float | None
    pointing: float | None
    pointing_interval: tuple[float, float] | None
    pointing_uniform: float | None
    pointing_untrained: float | None
    training_seconds: float | None
    tuning_seconds: float | None
    step: tuple[float, float, float] | None
    disturbed: bool | None
    trainable_parameters: float | None
    trainable_share: float | None
    peak_memory_bytes: float | None
    adapter_bytes: float | None
    leaks: str | None
    cut_off: float | None = None
    text_notes: tuple[str, ...] = ()
    forgetting: float | None = None


def _count(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    return f"{value / 1e3:.0f}k" if value >= 1e3 else f"{value:.0f}"


def _size(value: float) -> str:
    if value >= 2**30:
        return f"{value / 2**30:.1f}GB"
    return f"{value / 2**20:.0f}MB" if value >= 10 * 2**20 else f"{value / 2**10:.0f}KB"


def _interval(value: tuple[float, float]) -> str:
    return f"{value[0]:.2f}-{value[1]:.2f}"


_Column = tuple[str, str, Callable[[Any], str], bool | None]  # heading, field, format, whether more is better (None: neither)
_COLUMNS: tuple[_Column, ...] = (
    ("CIDEr", "cider", lambda v: f"{v:.3f}", True),
    ("95%", "cider_interval", _interval, None),
    ("BLEU-4", "bleu_4", lambda v: f"{v:.3f}", True),
    ("ROUGE-L", "rouge_l", lambda v: f"{v:.3f}", True),
    ("point", "pointing", lambda v: f"{v:.0%}", None),  # the score of chance is below the table
    ("forget", "forgetting", lambda v: f"{v:+.2f}", False),
    ("train s", "training_seconds", lambda v: f"{v:,.1f}", False),
    ("params", "trainable_parameters", _count, False),
    ("memory", "peak_memory_bytes", _size, False),
    ("size", "adapter_bytes", _size, False),
)
_OPTIONAL = ("pointing", "forgetting")
_TERMINAL = 80  # characters
_LEFT_OUT_FIRST = ("bleu_4", "rouge_l")


def rows(records: Iterable[Record], results: Iterable[Group] = ()) -> tuple[Row, ...]:
    """One row for each backbone, data set and strategy, the highest CIDEr first, failed ones last.

    `results` of the same runs add intervals of the mean over seeds, ties and step times.
    """
    compared = {
        record.run_id: (group, entry, entry.name in ties)
        for group in results
        for ties in (group.ties("cider"),)
        for entry in group.entries
        for record in entry.records
    }
    made = []
    ordered = sorted(records, key=_key)
    for (backbone, data, strategy, *_), group in itertools.groupby(ordered, key=_key):
        several = list(group)
        done = [r for r in several if r.status == "ok"]
        row = _row(backbone, data, strategy, several, done)
        if done and done[0].run_id in compared:
            row = _with_results(row, *compared[done[0].run_id])
        made.append(row)
    return tuple(sorted(made, key=lambda r: (r.backbone, r.data, r.cider is None, -(r.cider or 0))))


def _with_results(row: Row, group: Group, entry: Entry, tied: bool) -> Row:
    """Add intervals of the mean over seeds, ties and step times."""

    def interval(score: str) -> tuple[float, float] | None:
        found = group.interval(entry, score)
        return (found.low, found.high) if found else None

    step = entry.step
    return replace(
        row, cider_interval=interval("cider"), pointing_interval=interval("pointing_finding"), tied=tied,
        step=(step.low, step.median, step.high) if step else None,
        disturbed=(step.disturbed or row.disturbed is True) if step else row.disturbed,
    )  # fmt: skip


def _key(record: Record) -> tuple[str, str, str, str]:
    """The key of a row: records that share it differ only in their seed."""
    return record.backbone, record.data, record.strategy, record.settings


def _row(backbone: str, data: str, strategy: str, several: Sequence[Record], done: Sequence[Record]) -> Row:
    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if known else None

    def metric(name: str) -> float | None:
        return mean((r.metrics or {}).get(name) for r in done)

    ciders = [value for r in done if (value := (r.metrics or {}).get("cider")) is not None]
    return Row(
        backbone=backbone,
        data=data,
        strategy=strategy,
        seeds=len(done),
        failed=len(several) - len(done),
        cider=metric("cider"),
        cider_interval=(done[0].intervals or {}).get("cider") if len(done) == 1 else None,
        pointing=metric("pointing_finding"),
        pointing_interval=(done[0].intervals or {}).get("pointing_finding") if len(done) == 1 else None,
        pointing_uniform=metric("pointing_finding_uniform"),
        pointing_untrained=metric("pointing_finding_untrained"),
        seed_spread=stdev(ciders) if len(ciders) > 1 else None,
        tied=None,
        bleu_4=metric("bleu_4"),
        rouge_l=metric("rouge_l"),
        training_seconds=mean(r.training_seconds for r in done),
        tuning_seconds=mean(r.tuning.seconds for r in done if r.tuning),
        step=None,
        disturbed=any(r.disturbed for r in done) or None,
        trainable_parameters=mean(r.trainable_parameters for r in done),
        trainable_share=mean((r.trainable_parameters or 0) / r.total_parameters for r in done if r.total_parameters),
        peak_memory_bytes=mean(r.peak_memory_bytes for r in done),
        adapter_bytes=mean(r.adapter_bytes for r in done),
        leaks=" ".join(leak_notes(done)) or None,
        cut_off=cut_off_share(done),
        text_notes=tuple(text_notes(done)),
        forgetting=mean(r.forgetting for r in done),
    )


def _columns(table: Sequence[Row]) -> list[_Column]:
    """The columns of a table; the optional ones only if at least one row has a value."""
    return [c for c in _COLUMNS if c[1] not in _OPTIONAL or any(getattr(row, c[1]) is not None for row in table)]


def _cells(table: Sequence[Row], columns: Sequence[_Column], mark: str) -> list[list[str]]:
    """Formatted cells of one backbone and data set; the best trained run of each column gets `mark`.

    In the CIDEr column all rows that tie for the best get it, if that is known.
    """
    cells = [[row.strategy] for row in table]
    for _, field, text, more in columns:
        values = [getattr(row, field) for row in table]
        trained = [v for v, row in zip(values, table, strict=True) if v is not None and row.trainable_parameters]
        best = (max if more else min)(trained) if trained and len(table) > 1 and more is not None else None
        for cell, value, row in zip(cells, values, table, strict=True):
            shown = "-" if value is None else text(value)
            marked = row.tied if field == "cider" and row.tied is not None else value is not None and value == best
            cell.append(shown + (mark if marked and row.trainable_parameters else ""))
    return cells


def _notes(group: Sequence[Row]) -> list[str]:
    """Notes to print below a table."""
    notes = []
    uniform = [row.pointing_uniform for row in group if row.pointing_uniform is not None]
    untrained = [row.pointing_untrained for row in group if row.pointing_untrained is not None]
    if uniform:
        controls = f"a uniform map {fmean(uniform):.0%}"
        controls += f", untrained decoders {min(untrained):.0%} to {max(untrained):.0%}" if untrained else ""
        notes.append(f"point: how often attention at the finding's words is highest on the finding; {controls}.")
    if any(row.forgetting is not None for row in group):
        notes.append("forget: rise of the loss on the base's own captions of general images, in nats per token.")
    tuned = [row.tuning_seconds for row in group if row.tuning_seconds is not None]
    if tuned:
        notes.append(f"Choosing learning rates on validation images took {sum(tuned):,.0f} s more.")
    notes += dict.fromkeys(row.leaks for row in group if row.leaks)
    if disturbed := [row.strategy for row in group if row.disturbed]:
        notes.append(f"Other work disturbed the timing of: {', '.join(disturbed)}.")
    notes += dict.fromkeys(note for row in group for note in row.text_notes)
    notes += cut_off_note({row.strategy: row.cut_off for row in group})
    if failed := [f"{row.strategy} ({row.failed} of {row.failed + row.seeds})" for row in group if row.failed]:
        notes.append(f"Failed runs: {', '.join(failed)}; see `error` in their records.")
    return notes


def _groups(table: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    baselines = [row for row in table if row.backbone == BASELINE]
    models = [row for row in table if row.backbone != BASELINE]
    for (backbone, data), group in itertools.groupby(models or table, key=lambda r: (r.backbone, r.data)):
        several = list(group) + [row for row in baselines if row.data == data and models]
        seeds = max(row.seeds for row in several)
        yield f"{backbone} on {data}" + (f", mean of {seeds} seeds" if seeds > 1 else ""), several


def terminal(table: Sequence[Row]) -> str:
    """A table at most 80 columns wide (except for long strategy names); `*` marks the best trained run of each column.

    BLEU-4 and ROUGE-L are left out where they do not fit.
    """
    blocks = []
    for title, group in _groups(table):
        columns = _columns(group)
        lines = _lines(group, columns)
        for field in _LEFT_OUT_FIRST:
            if max(map(len, lines)) > _TERMINAL:
                columns = [column for column in columns if column[1] != field]
                lines = _lines(group, columns)
        lines.insert(1, "-" * max(map(len, lines)))
        notes = [line for note in _notes(group) for line in textwrap.wrap(note, _TERMINAL)]
        blocks.append("\n".join([one_line(title), "", *lines, *(["", *notes] if notes else [])]))
    return "\n\n".join(blocks)


def _lines(group: Sequence[Row], columns: Sequence[_Column]) -> list[str]:
    """The heading and the rows of a table for the terminal."""
    cells = [["strategy", *(heading for heading, *_ in columns)], *_cells(group, columns, "*")]
    cells = [[one_line(name), *rest] for name, *rest in cells]
    widths = [max(len(row[i]) - row[i].endswith("*") for row in cells) for i in range(len(cells[0]))]
    lines = []
    for name, *values in cells:
        rest = [
            value.rstrip("*").rjust(width) + ("*" if value.endswith("*") else " ")
            for value, width in zip(values, widths[1:], strict=True)
        ]
        lines.append(f"{name.ljust(widths[0])} {''.join(rest)}".rstrip())
    return lines


def markdown(table: Sequence[Row]) -> str:
    """The table in Markdown, the best in bold."""
    blocks = []
    for title, group in _groups(table):
        columns = _columns(group)
        headings = [heading for heading, *_ in columns]
        lines = [f"| strategy | {' | '.join(headings)} |", "|---" + "|---:" * len(headings) + "|"]
        for name, *values in _cells(group, columns, "*"):
            cells = [f"**{c[:-1]}**" if c.endswith("*") else c for c in values]
            lines.append(f"| {' | '.join([markdown_text(name), *cells])} |")
        notes = [markdown_text(note) for note in _notes(group)]
        blocks.append("\n".join([f"**{markdown_text(title)}**", "", *lines, *(["", " ".join(notes)] if notes else [])]))
    return "\n\n".join(blocks)


def as_csv(table: Sequence[Row]) -> str:
    """The rows as comma-separated values, below a line of field names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: spreadsheet_cell(value) for name, value in asdict(row).items()} for row in table)
    return text.getvalue().rstrip("\n")


def as_json(table: Sequence[Row]) -> str:
    """The rows as JSON."""
    return json.dumps([asdict(row) for row in table], indent=2)
