"""The tables of results and of settings in the report's page: columns with explanations, cells with what to sort by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medgraft.benchmark import Record
from medgraft.plugin import ScoreSpec
from medgraft.report.rows import Cell, Row
from medgraft.report.table import count_text, score_text, size_text


@dataclass(frozen=True)
class PageCell:
    """The text, the value to sort by, small lines below it, and whether it is marked."""

    text: str = "\u2013"
    value: float | None = None
    small: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class PageColumn:
    """A column's head, what it means, and its cells by row; `detail` ones are shown on demand."""

    key: str
    heading: str
    explanation: str
    cells: Sequence[PageCell]
    arrow: str = ""
    detail: bool = False


def results_columns(rows: Sequence[Row], records: Sequence[Record], frontier: Mapping[str, float]) -> list[PageColumn]:
    """The columns of the table of results that have a value in some row; `frontier` has shares by the row's name."""
    main = rows[0].main
    specs = {name: cell.spec for row in rows for name, cell in row.scores.items()}
    ordered = sorted(specs.values(), key=lambda spec: (spec.name != main, spec.detail))
    scores = [_score(rows, spec, detail=spec.detail and spec.name != main) for spec in ordered]
    first, rest = scores[:1], scores[1:]
    heading = specs[main].heading if main in specs else main
    columns = [*first, *_costs(rows, frontier, heading), *rest, *_signs(rows, records, main, heading)]
    return [column for column in columns if any(cell.value is not None for cell in column.cells)]


def _score(rows: Sequence[Row], spec: ScoreSpec, *, detail: bool) -> PageColumn:
    cells = [_score_cell(row.scores[spec.name]) if spec.name in row.scores else PageCell() for row in rows]
    arrow = {1: "\u2191", -1: "\u2193", 0: ""}[spec.sign]
    return PageColumn(spec.name, spec.heading, f"{spec.explanation}.", cells, arrow, detail)


def _score_cell(cell: Cell) -> PageCell:
    small = [f"{cell.interval[0]:.2f} to {cell.interval[1]:.2f}"] if cell.interval else []
    small += [f"seeds \u00b1{cell.spread:.3f}"] if cell.spread is not None else []
    small += [f"{cell.spec.controls[name]}: {value:.2f}" for name, value in cell.controls.items()]
    return PageCell(score_text(cell.value), cell.value, tuple(small), cell.best)


def _costs(rows: Sequence[Row], frontier: Mapping[str, float], heading: str) -> list[PageColumn]:
    def column(field: str, name: str, about: str, text: Callable[[float], str]) -> PageColumn:
        values = [getattr(row, field) for row in rows]
        cells = [
            PageCell() if v is None else PageCell(text(v), v, best=field in row.best_costs)
            for v, row in zip(values, rows, strict=True)
        ]
        return PageColumn(field, name, about, cells)

    seconds = column("training_seconds", "training s", "Seconds of building features and of training steps.", "{:,.1f}".format)
    tuned = [
        PageCell(cell.text, cell.value, (f"tuning {row.tuning_seconds:,.0f}",), cell.best) if row.tuning_seconds else cell
        for cell, row in zip(seconds.cells, rows, strict=True)
    ]
    shares = [frontier.get(row.strategy) for row in rows]
    about = "Rise of the loss on the base's own captions of general images, in nats per token; lower is better."
    return [
        PageColumn("training_seconds", seconds.heading, seconds.explanation, tuned),
        PageColumn("step", "step s", "Seconds of one step: the median, with quartiles.", [_step(row) for row in rows]),
        PageColumn(
            "frontier", "frontier", f"Probability that no other has both more {heading} and less training time.",
            [PageCell() if share is None else PageCell(f"{share:.0%}", share) for share in shares],
        ),
        column("trainable_parameters", "params", "Parameters that were trained.", count_text),
        column("peak_memory_bytes", "memory", "Peak memory of the run's own process.", size_text),
        column("adapter_bytes", "size", "Bytes of the weights that ship.", size_text),
        column("forgetting", "forgetting", about, "{:+.3f}".format),
    ]  # fmt: skip


def _step(row: Row) -> PageCell:
    if row.step is None:
        return PageCell()
    low, middle, high = row.step
    return PageCell(f"{middle:.3f}", middle, (f"{low:.3f} to {high:.3f}", *(("disturbed",) if row.disturbed else ())))


def _signs(rows: Sequence[Row], records: Sequence[Record], main: str, heading: str) -> list[PageColumn]:
    """Signs of captions that ignore the image."""
    collapse = {record.run_id: record.collapse or {} for record in records}

    def column(key: str, name: str, about: str, text: Callable[[float], str]) -> PageColumn:
        cells = []
        for row in rows:
            known = [collapse[run][key] for run in row.run_ids if key in collapse.get(run, {})]
            mean = sum(known) / len(known) if known else None
            cells.append(PageCell() if mean is None else PageCell(text(mean), mean))
        return PageColumn(key, name, about, cells)

    about = f"{heading} with every caption moved to another image: what is left of it does not depend on the image."
    return [
        column("distinct_share", "distinct", "Distinct captions as a share of all captions.", "{:.0%}".format),
        column(f"shuffled_{main}", "shuffled", about, score_text),
    ]


def settings_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Batch, learning rate, length and the strategy's settings of each row that trains."""
    found = []
    for row in rows:
        chosen = row.settings
        if chosen.batch_size is None:
            continue
        rate = "\u2013" if chosen.learning_rate is None else f"{chosen.learning_rate:g}"
        rate += f" (tuned; the {row.rate_at_edge} tried)" if row.rate_at_edge else " (tuned)" if row.tuning_seconds else ""
        length = [f"{chosen.steps} steps" if chosen.steps else "", f"{chosen.epochs:g} epochs" if chosen.epochs else ""]
        found.append(
            {
                "name": row.strategy, "seeds": row.seeds, "batch": chosen.batch_size, "rate": rate,
                "length": ", ".join(filter(None, length)), "options": chosen.options or "\u2013",
            }
        )  # fmt: skip
    return found
