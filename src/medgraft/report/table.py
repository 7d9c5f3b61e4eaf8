"""Rows as a table for the terminal, as Markdown, JSON or CSV, with notes on what the numbers mean."""

from __future__ import annotations

import csv
import io
import itertools
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from medgraft.escaping import markdown_text, one_line, spreadsheet_cell
from medgraft.plugin import ScoreSpec
from medgraft.report.rows import Cell, Row
from medgraft.report.standing_notes import standing_notes
from medgraft.report.text_notes import cut_off_note

_WIDTH = 80  # characters; columns that do not fit make a table of their own
_ARROWS = {1: "\u2191", -1: "\u2193", 0: ""}


@dataclass(frozen=True)
class _Column:
    """A heading, and for a row the text of its cell and whether it is marked."""

    heading: str
    cell: Callable[[Row], tuple[str, bool]]


def count_text(value: float) -> str:
    """A number of parameters."""
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    return f"{value / 1e3:.0f}k" if value >= 1e3 else f"{value:.0f}"


def size_text(value: float) -> str:
    """Bytes in a unit that suits."""
    if value >= 2**30:
        return f"{value / 2**30:.1f}GB"
    return f"{value / 2**20:.0f}MB" if value >= 10 * 2**20 else f"{value / 2**10:.0f}KB"


def score_text(value: float) -> str:
    """A score with the digits that matter."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


_COSTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (  # heading, field, format
    ("forget", "forgetting", lambda v: f"{v:+.2f}"),
    ("train s", "training_seconds", lambda v: f"{v:,.1f}"),
    ("params", "trainable_parameters", count_text),
    ("memory", "peak_memory_bytes", size_text),
    ("size", "adapter_bytes", size_text),
)
_OPTIONAL = ("forgetting",)


def _score_column(spec: ScoreSpec) -> _Column:
    def cell(row: Row) -> tuple[str, bool]:
        found = row.scores.get(spec.name)
        return (score_text(found.value), found.best) if found else ("-", False)

    return _Column(spec.heading + _ARROWS[spec.sign], cell)


def _interval_column(score: str) -> _Column:
    def cell(row: Row) -> tuple[str, bool]:
        interval = row.scores[score].interval if score in row.scores else None
        return (f"{interval[0]:.2f}-{interval[1]:.2f}" if interval else "-", False)

    return _Column("95%", cell)


def _cost_column(heading: str, field: str, text: Callable[[Any], str]) -> _Column:
    def cell(row: Row) -> tuple[str, bool]:
        value = getattr(row, field)
        return ("-" if value is None else text(value), field in row.best_costs)

    return _Column(heading, cell)


def short_scores(group: Sequence[Row]) -> list[ScoreSpec]:
    """The scores of a short table: no details, the main one first."""
    main = group[0].main
    found = {name: cell.spec for row in group for name, cell in row.scores.items() if not cell.spec.detail or name == main}
    return sorted(found.values(), key=lambda spec: spec.name != main)


def _parts(group: Sequence[Row]) -> list[list[list[str]]]:
    """Cells of one table or several, at most 80 characters wide: quality against cost, then the scores left over.

    The first row has the headings; a cell that is marked ends with `*`.
    """
    scores = short_scores(group)
    costs = [_cost_column(*c) for c in _COSTS if c[1] not in _OPTIONAL or any(getattr(r, c[1]) is not None for r in group)]
    first = [*(_score_column(spec) for spec in scores[:1]), *(_interval_column(spec.name) for spec in scores[:1])]
    parts, place = [[*first, *costs]], len(first)
    for column in map(_score_column, scores[1:]):
        wider = [*parts[-1][:place], column, *parts[-1][place:]]
        if max(map(len, _lines(_cells(group, wider)))) > _WIDTH:
            parts.append([column])
            place = 1
        else:
            parts[-1], place = wider, place + 1
    return [_cells(group, columns) for columns in parts]


def _cells(group: Sequence[Row], columns: Sequence[_Column]) -> list[list[str]]:
    shown = [[column.cell(row) for column in columns] for row in group]
    texts = [[text + "*" * marked for text, marked in cells] for cells in shown]
    heading = ["strategy", *(column.heading for column in columns)]
    return [heading, *([row.strategy, *each] for row, each in zip(group, texts, strict=True))]


def _notes(group: Sequence[Row]) -> list[str]:
    """Notes to print below a table."""
    notes = []
    if any(cell.best for row in group for cell in row.scores.values()) or any(row.best_costs for row in group):
        how = "all not shown to be worse" if any(row.tested for row in group) else "by values alone, without captions to test"
        beats = "; only rows that beat captions that ignore the image" if any(row.is_baseline for row in group) else ""
        notes.append(f"Marked: the best score, {how}, and the least cost{beats}.")
    if any(row.forgetting is not None for row in group):
        notes.append("forget: rise of the loss on the base's own captions of general images, in nats per token.")
    tuned = [row.tuning_seconds for row in group if row.tuning_seconds is not None]
    if tuned:
        notes.append(f"Choosing learning rates on validation images took {sum(tuned):,.0f} s more.")
    notes += edge_notes(group)
    notes += dict.fromkeys(row.leaks for row in group if row.leaks)
    if disturbed := [row.strategy for row in group if row.disturbed]:
        notes.append(f"Other work disturbed the timing of: {', '.join(disturbed)}.")
    notes += dict.fromkeys(note for row in group for note in row.text_notes)
    notes += cut_off_note({row.strategy: row.cut_off for row in group})
    if failed := [f"{row.strategy} ({row.failed} of {row.failed + row.seeds})" for row in group if row.failed]:
        notes.append(f"Failed runs: {', '.join(failed)}; see `error` in their records.")
    return notes


def edge_notes(group: Sequence[Row]) -> list[str]:
    """A sentence on learning rates that were chosen at the edge of the ones tried."""
    found = [f"{row.strategy} ({row.settings.learning_rate:g}, the {row.rate_at_edge})" for row in group if row.rate_at_edge]
    return [f"Learning rates at the edge of those tried, so better ones may lie beyond: {', '.join(found)}."] if found else []


def _legend(group: Sequence[Row]) -> list[str]:
    """A line for each score: what it is, which direction is better, and what chance gives."""
    lines = []
    for spec in short_scores(group):
        cells = [row.scores[spec.name] for row in group if spec.name in row.scores]
        chance = [f"{what} gives {_range(cells, name)}" for name, what in spec.controls.items() if _range(cells, name)]
        lines.append("; ".join([f"{spec.heading}: {spec.explanation}", *chance]) + ".")
    return lines


def _range(cells: Sequence[Cell], control: str) -> str:
    """Lowest and highest value of a control over the rows."""
    found = [score_text(cell.controls[control]) for cell in cells if control in cell.controls]
    return " to ".join(dict.fromkeys((min(found), max(found)))) if found else ""


def by_title(table: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    """The rows of each backbone and data set with the baselines on it, under a title."""
    baselines = [row for row in table if row.is_baseline]
    models = [row for row in table if not row.is_baseline]
    for (backbone, data), group in itertools.groupby(models or table, key=lambda r: (r.backbone, r.data)):
        several = list(group) + [row for row in baselines if row.data == data and models]
        seeds = max(row.seeds for row in several)
        yield f"{backbone} on {data}" + (f", mean of {seeds} seeds" if seeds > 1 else ""), several


def terminal(table: Sequence[Row]) -> str:
    """A table at most 80 columns wide (except for long strategy names); `*` marks the best of each column."""
    blocks = []
    for title, group in by_title(table):
        parts = []
        for cells in _parts(group):
            lines = _lines(cells)
            parts.append("\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]))
        first = _wrapped(standing_notes(group))
        notes = _wrapped([*_notes(group), *_legend(group)])
        blocks.append("\n\n".join(filter(None, ["\n".join([one_line(title), *first]), *parts, "\n".join(notes)])))
    return "\n\n".join(blocks)


def _wrapped(notes: Iterable[str]) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(one_line(note), _WIDTH)]


def _lines(cells: Sequence[Sequence[str]]) -> list[str]:
    """The heading and the rows of a table for the terminal."""
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


def markdown(table: Sequence[Row], *, whole: bool = True) -> str:
    """The table in Markdown, the best in bold; unless `whole`, its first part alone, without the legend of the scores."""
    blocks = []
    for title, group in by_title(table):
        block = [f"**{markdown_text(title)}**", *(f"**{markdown_text(note)}**" for note in standing_notes(group))]
        for (_, *headings), *body in _parts(group)[: None if whole else 1]:
            lines = [f"| strategy | {' | '.join(map(markdown_text, headings))} |", "|---" + "|---:" * len(headings) + "|"]
            for name, *values in body:
                cells = [f"**{c[:-1]}**" if c.endswith("*") else c for c in values]
                lines.append(f"| {' | '.join([markdown_text(name), *cells])} |")
            block.append("\n".join(lines))
        notes = (_notes(group), _legend(group) if whole else ())
        block += filter(None, (" ".join(map(markdown_text, lines)) for lines in notes))
        blocks.append("\n\n".join(block))
    return "\n\n".join(blocks)


_ENDS = ("", "_low", "_high", "_seed_spread")


def as_csv(table: Sequence[Row]) -> str:
    """The rows as comma-separated values below a line of names; a score has its value, interval and spread over seeds."""
    scores = [_flat_scores(row) for row in table]
    others = [_flat(row) for row in table]
    first, last, found = list(others[0])[:5], list(others[0])[5:], {name for line in scores for name in line}
    stems = dict.fromkeys(key for row in table for name, cell in row.scores.items() for key in (name, *cell.controls))
    names = [*first, *(key for stem in stems for end in _ENDS if (key := f"{stem}{end}") in found), *last]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for about, own in zip(others, scores, strict=True):
        writer.writerow({name: spreadsheet_cell(value) for name, value in {**about, **own}.items()})
    return text.getvalue().rstrip("\n")


def _flat(row: Row) -> dict[str, Any]:
    """Everything but the scores, a value each; the names of what is marked together."""
    values = {field.name: getattr(row, field.name) for field in fields(Row) if field.name not in ("scores", "run_ids")}
    settings, step, costs = (values.pop(name) for name in ("settings", "step", "best_costs"))
    best = [name for name, cell in row.scores.items() if cell.best] + sorted(costs)
    low, middle, high = step or (None, None, None)
    values |= {"text_notes": " ".join(row.text_notes), "best": " ".join(best), **asdict(settings)}
    return values | {"step_seconds": middle, "step_low": low, "step_high": high}


def _flat_scores(row: Row) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, cell in row.scores.items():
        low, high = cell.interval or (None, None)
        known = {f"{name}{end}": value for end, value in zip(_ENDS, (cell.value, low, high, cell.spread), strict=True)}
        values |= {**{key: value for key, value in known.items() if value is not None}, **cell.controls}
    return values


def as_json(table: Sequence[Row]) -> str:
    """The rows as JSON; `scores` has for each its value, interval, direction, explanation and mark."""
    return json.dumps([_json(row) for row in table], indent=2)


def _json(row: Row) -> dict[str, Any]:
    def score(cell: Cell) -> dict[str, Any]:
        about = {"better": cell.spec.better, "label": cell.spec.heading, "summary": cell.spec.summary}
        return {key: value for key, value in asdict(cell).items() if key != "spec"} | about

    scores = {name: score(cell) for name, cell in row.scores.items()}
    return {**asdict(row), "scores": scores, "best_costs": sorted(row.best_costs)}
