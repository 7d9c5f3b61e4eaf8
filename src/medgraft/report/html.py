"""The report as one self-contained HTML page: no network, no server, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import vl_convert

from medgraft.benchmark import BASELINE, Record, unreadable_records
from medgraft.plugin import MAIN_SCORE, PluginManager
from medgraft.report.charts import learning_curves, quality_against_time, where_the_time_went
from medgraft.report.image_browser import image_browser
from medgraft.report.page_table import results_columns, settings_rows
from medgraft.report.pages import render_page
from medgraft.report.results import Entry, Group, leak_notes
from medgraft.report.rows import Row, rows
from medgraft.report.standing_notes import standing_notes
from medgraft.report.table import by_title, edge_notes
from medgraft.report.text_notes import cut_off_note, cut_off_share, text_notes
from medgraft.saliency import COLOURS, COVER
from medgraft.stats import ALPHA

_SCORE = MAIN_SCORE
_WORDS = {1: ("better", "worse"), -1: ("worse", "better"), 0: ("higher", "lower")}  # of a positive and a negative difference


def html_report(title: str, records: Sequence[Record], groups: Sequence[Group], folder: Path, *, plugins: PluginManager) -> str:
    """The page. It shows images if the runs' data can still be read, and maps if `folder` has them."""
    table = rows(records, groups, plugins=plugins)
    parts = [[row for row in table if row.data == data] for data in dict.fromkeys(row.data for row in table if row.scores)]
    sections = [_section(number, part, records, _group_of(part, groups), folder, plugins) for number, part in enumerate(parts)]
    charts = {f"{name}-{s['number']}": spec for s in sections for name, spec in s["charts"].items() if spec is not None}
    return render_page(
        "report",
        {
            "charts": charts,
            "examples": [s["browser"]["examples"] if s["browser"] else None for s in sections],
            "colours": COLOURS.tolist(),
            "cover": COVER,
        },
        scripts=("examples",),
        title=title,
        sections=sections,
        failed=[record for record in records if record.status == "failed"],
        provenance=_provenance(records),
        caveats=[*_caveats(records, groups, table), *(f"Left out: {problem}." for problem in unreadable_records(folder))],
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"),
    )


def _group_of(part: Sequence[Row], groups: Sequence[Group]) -> Group | None:
    """The group of the rows' runs, best first as they are; None if no captions were read."""
    places = {run: number for number, row in enumerate(part) for run in row.run_ids}
    for group in groups:
        found = {places[entry.records[0].run_id]: entry for entry in group.entries if entry.records[0].run_id in places}
        if found:
            return replace(group, entries=tuple(found[number] for number in sorted(found)))
    return None


def _section(
    number: int, part: list[Row], records: Sequence[Record], group: Group | None, folder: Path, plugins: PluginManager
) -> dict[str, Any]:
    """What the page shows of one test set; without captions the table alone."""
    models = list(dict.fromkeys(row.backbone for row in part if not row.is_baseline))
    part = sorted(part, key=lambda row: (row.main not in row.scores, -_signed(row)))
    named = [replace(row, strategy=_name(row, len(models) > 1)) for row in part]
    group = None if group is None else _group_of(part, [group])
    main = part[0].main
    columns = results_columns(named, records, group.frontier(main) if group else {})
    return {
        "number": number,
        "title": f"{', '.join(models)} on {part[0].data}" if models else part[0].data,
        "images": len(group.entries[0].captions[0].ids) if group else None,
        "groups": group.resampling.groups if group else None,
        "first": standing_notes(named),
        "heading": part[0].scores[main].spec.heading if main in part[0].scores else main,
        "columns": columns,
        "details": sum(column.detail for column in columns),
        "rows": named,
        "settings": settings_rows(named),
        "pairs": _pairs(group, group.entries) if group and len(group.entries) > 1 else [],
        "names": [entry.name for entry in group.entries] if group else [],
        "charts": {
            "quality": quality_against_time(group, main) if group else None,
            "time": where_the_time_went(group) if group else None,
            "curves": learning_curves(group) if group else None,
        },
        "browser": image_browser(group, main, folder, plugins=plugins) if group else None,
    }


def _signed(row: Row) -> float:
    cell = row.scores.get(row.main)
    return cell.spec.sign * cell.value if cell else 0.0


def _name(row: Row, several: bool) -> str:
    """The strategy, and the backbone if the table has several."""
    return f"{row.backbone} {row.strategy}" if several else row.strategy


def _pairs(group: Group, ordered: Sequence[Entry]) -> list[list[dict[str, Any] | None]]:
    """The row's score minus the column's, with its corrected p-value; None on the diagonal."""
    found, direction = group.differences(group.main), group.scores[group.main].sign
    matrix: list[list[dict[str, Any] | None]] = []
    for a in ordered:
        row: list[dict[str, Any] | None] = []
        for b in ordered:
            sign = 1 if (a.name, b.name) in found else -1
            pair = found.get((a.name, b.name)) or found.get((b.name, a.name))
            if pair is None:
                row.append(None)
                continue
            value, p = sign * pair[0].value, pair[1]
            row.append({"value": value, "p": p, "word": "undecided" if p >= ALPHA else _WORDS[direction][value < 0]})
        matrix.append(row)
    return matrix


def _provenance(records: Sequence[Record]) -> dict[str, str]:
    """Versions, hardware and data of the runs; several values where they differ."""

    def all_of(values: Sequence[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "unknown"

    first = records[0]
    return {
        "finished": all_of([record.finished for record in records[-1:]]),
        "hardware": all_of([f"{r.hardware.cpu}, {r.hardware.threads} threads" for r in records]),
        "accelerators": all_of([name for r in records for name in r.hardware.accelerators] or ["none"]),
        "code": all_of([record.git for record in records]),
        "versions": ", ".join(f"{name} {version}" for name, version in first.versions.items() if version),
        "data": all_of([f"{r.data} {(r.data_fingerprint or '')[:12]}" for r in records]),
        "metrics": "; ".join(dict.fromkeys(text for r in records for text in (r.signatures or {}).values())),
        "not computed": "; ".join(dict.fromkeys(f"{n}: {why}" for r in records for n, why in (r.unavailable or {}).items()))
        or "nothing",
    }


def _caveats(records: Sequence[Record], groups: Sequence[Group], table: Sequence[Row]) -> list[str]:
    """Caveats for the reader, derived from the results."""
    caveats = [
        "Caption scores compare words with words. A caption can score well and name the wrong finding; no score here measures "
        "clinical correctness.",
        "Intervals (95 %) show how a score would vary with other test images of the same kind, resampled by patient or article "
        "where groups are known. They do not cover other hospitals, other data sets or other decoding settings.",
    ]
    grouped = {record.run_id for group in groups for entry in group.entries for record in entry.records}
    lacking = [f"{r.backbone} {r.strategy} seed {r.seed}" for r in records if r.status == "ok" and r.run_id not in grouped]
    if lacking:
        caveats.append(
            "Runs without captions that can be read, of which there are only the numbers in their records, no tests and no "
            f"examples: {', '.join(lacking)}."
        )
    for _, several in by_title(table):
        caveats += edge_notes(several)
    for group in groups:
        caveats += [f"{group.data}: {text}" for text in leak_notes(record for e in group.entries for record in e.records)]
        single = [entry.name for entry in group.entries if len(entry.records) == 1 and entry.backbone != BASELINE]
        if single:
            caveats.append(f"{group.data}: one seed only, so differences may come from the seed: {', '.join(single)}.")
        if group.resampling.groups < 50:
            caveats.append(f"{group.data}: only {group.resampling.groups} independent groups of test images.")
        same = [e.name for e in group.entries if any((r.collapse or {}).get("most_frequent_share", 0) > 0.5 for r in e.records)]
        if [name for name in same if not name.startswith(BASELINE)]:
            caveats.append(f"{group.data}: the same caption for more than half of the images: {', '.join(same)}.")
        if disturbed := [entry.name for entry in group.entries if entry.step and entry.step.disturbed]:
            caveats.append(f"{group.data}: other work disturbed the timing of {', '.join(disturbed)}.")
        notes = text_notes(record for entry in group.entries for record in entry.records)
        notes += cut_off_note({entry.name: cut_off_share(entry.records) for entry in group.entries})
        caveats += [f"{group.data}: {note}" for note in notes]
        untuned = [e.name for e in group.entries if e.tuning_seconds is None and (e.mean("trainable_parameters") or 0) > 0]
        if untuned:
            caveats.append(f"{group.data}: learning rates were not tuned with equal budgets: {', '.join(untuned)}.")
    if any(entry.seeds("pointing_finding") for group in groups for entry in group.entries):
        caveats.append(
            "Pointing, energy and overlap measure attention while the reference is teacher-forced. Compare them with the "
            "controls: a uniform map, and a decoder with random weights. Attention shows where a model attends, not why."
        )
    if len({record.hardware.cpu for record in records}) > 1:
        caveats.append("Runs were made on different machines, so their times cannot be compared.")
    return caveats
