"""The report as one self-contained HTML page: no network, no server, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import vl_convert

from medgraft.benchmark import BASELINE, Record, unreadable_records
from medgraft.config import CONTROLS
from medgraft.plugin import PluginManager
from medgraft.report.charts import learning_curves, quality_against_time, where_the_time_went
from medgraft.report.image_browser import image_browser
from medgraft.report.pages import render_page
from medgraft.report.results import ALPHA, Entry, Group, leak_notes
from medgraft.report.text_notes import cut_off_note, cut_off_share, text_notes
from medgraft.saliency import COLOURS, COVER

_SCORE = "cider"
_SHOWN = (
    "cider", "bleu_4", "rouge_l", "rouge_1", "finding_f1", "modality_accuracy", "side_contradicted", "side_omitted",
    "unsupported_measurement", "fact_study", "fact_finding", "fact_side", "fact_all", "pointing_finding",
    "pointing_finding_uniform", "pointing_finding_untrained", "energy_finding", "iou_finding", "pointing_side", "pointing_site",
    "deletion", "deletion_random", "insertion", "insertion_random",
)  # fmt: skip


def html_report(title: str, records: Sequence[Record], groups: Sequence[Group], folder: Path, *, plugins: PluginManager) -> str:
    """The page. It shows images if the runs' data can still be read, and maps if `folder` has them."""
    sections = [_section(number, group, folder, plugins) for number, group in enumerate(groups)]
    charts = {f"{name}-{s['number']}": spec for s in sections for name, spec in s["charts"].items() if spec is not None}
    return render_page(
        "report",
        {
            "charts": charts,
            "examples": [s["browser"]["examples"] for s in sections],
            "colours": COLOURS.tolist(),
            "cover": COVER,
        },
        scripts=("examples",),
        title=title,
        sections=sections,
        failed=[record for record in records if record.status == "failed"],
        provenance=_provenance(records),
        caveats=[*_caveats(records, groups), *(f"Left out: {problem}." for problem in unreadable_records(folder))],
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"),
    )


def _section(number: int, group: Group, folder: Path, plugins: PluginManager) -> dict[str, Any]:
    scores = [name for name in _SHOWN if any(entry.seeds(name) for entry in group.entries)]
    ties = {name: set() if name.endswith(CONTROLS) else group.ties(name) for name in scores}  # controls do not compete
    ordered = sorted(group.entries, key=lambda entry: -float(np.mean(entry.values(_SCORE) or [0.0])))
    group = replace(group, entries=tuple(ordered))
    shares = group.frontier(_SCORE)
    return {
        "number": number,
        "title": f"{', '.join(dict.fromkeys(e.backbone for e in ordered if e.backbone != BASELINE))} on {group.data}",
        "images": len(ordered[0].captions[0].ids),
        "groups": group.resampling.groups,
        "scores": scores,
        "forgetting": any(entry.mean("forgetting") is not None for entry in ordered),
        "rows": [_row(entry, group, scores, ties, shares) for entry in ordered],
        "pairs": _pairs(group, ordered),
        "names": [entry.name for entry in ordered],
        "charts": {
            "quality": quality_against_time(group, _SCORE),
            "time": where_the_time_went(group),
            "curves": learning_curves(group),
        },
        "browser": image_browser(group, _SCORE, folder, plugins=plugins),
    }


def _row(entry: Entry, group: Group, scores: list[str], ties: dict[str, set[str]], shares: dict[str, float]) -> dict[str, Any]:
    cells: list[dict[str, Any] | None] = []
    for name in scores:
        values, interval = entry.values(name), group.interval(entry, name)
        if not values or interval is None:
            cells.append(None)
            continue
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        best = entry.name in ties[name] and entry.backbone != BASELINE
        value = float(np.mean(values))
        cells.append({"value": value, "low": interval.low, "high": interval.high, "spread": spread, "best": best})
    collapse = [record.collapse or {} for record in entry.records]
    return {
        "name": entry.name,
        "seeds": len(entry.records),
        "cells": cells,
        "seconds": entry.mean("training_seconds"),
        "tuning": entry.tuning_seconds,
        "step": entry.step,
        "trained": entry.mean("trainable_parameters"),
        "memory": entry.mean("peak_memory_bytes"),
        "adapter": entry.mean("adapter_bytes"),
        "forgetting": entry.mean("forgetting"),
        "frontier": shares.get(entry.name),
        "distinct": _mean(collapse, "distinct_share"),
        "shuffled": _mean(collapse, f"shuffled_{_SCORE}"),
    }


def _mean(several: Sequence[dict[str, float]], key: str) -> float | None:
    known = [each[key] for each in several if key in each]
    return float(np.mean(known)) if known else None


def _pairs(group: Group, ordered: Sequence[Entry]) -> list[list[dict[str, Any] | None]]:
    """The row's score minus the column's, with its corrected p-value; None on the diagonal."""
    found = group.differences(_SCORE)
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
            row.append({"value": value, "p": p, "word": "undecided" if p >= ALPHA else "better" if value > 0 else "worse"})
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


def _caveats(records: Sequence[Record], groups: Sequence[Group]) -> list[str]:
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
        caveats.append(f"Runs without captions that can be read, which are not in the comparison: {', '.join(lacking)}.")
    for group in groups:
        caveats += [f"{group.data}: {text}" for text in leak_notes(record for e in group.entries for record in e.records)]
        single = [entry.name for entry in group.entries if len(entry.records) == 1 and entry.backbone != BASELINE]
        if single:
            caveats.append(f"{group.data}: one seed only, so differences may come from the seed: {', '.join(single)}.")
        if group.resampling.groups < 50:
            caveats.append(f"{group.data}: only {group.resampling.groups} independent groups of test images.")
        floor = [np.mean(e.values(_SCORE)) for e in group.entries if e.backbone == BASELINE and e.values(_SCORE)]
        below = [e.name for e in group.entries if floor and e.backbone != BASELINE and np.mean(e.values(_SCORE)) <= max(floor)]
        if below:
            caveats.append(f"{group.data}: not better than captions that ignore the image: {', '.join(below)}.")
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
