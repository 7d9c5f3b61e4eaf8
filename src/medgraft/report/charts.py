"""The report's plots, as Vega-Lite specifications made with Altair.

Colours are from Okabe and Ito's palette, which colour-blind readers can distinguish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from medgraft.report.results import Group

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
# the rest are Tol's muted colours; neighbours are easy to distinguish
_PHASES = {
    "read_data": ("reading data", "#6699CC"), "load": ("loading", "#332288"), "digests": ("digests", "#BBBBBB"),
    "features": ("building features", "#88CCEE"), "data": ("waiting for data", "#117733"),
    "forward": ("forward", "#44AA99"), "backward": ("backward", "#DDCC77"), "optimizer": ("optimiser", "#CC6677"),
    "train": ("other in training", "#999999"), "validation": ("validation", "#999933"),
    "checkpoint": ("checkpoints", "#661100"), "package": ("packaging", "#DDDDDD"), "generation": ("captioning", "#AA4499"),
    "saliency": ("attention maps", "#661133"),
    "scoring": ("scoring", "#882255"), "forgetting": ("forgetting", "#332288"),
}  # fmt: skip
_POINTS = 200  # of a learning curve, at most
_LABEL_WIDTH, _LABEL_HEIGHT = 0.25, 0.055  # of a label, as shares of the plot's size


def quality_against_time(group: Group, score: str) -> dict[str, Any] | None:
    """Score with its interval against training seconds; None if nothing was trained."""
    shares = group.frontier(score)
    points = []
    for entry in group.entries:
        interval, seconds = group.interval(entry, score), entry.mean("training_seconds")
        if interval is not None and entry.mean("trainable_parameters") and seconds:
            value = float(np.mean(entry.values(score)))
            points.append(
                {
                    "strategy": entry.name, "score": value, "low": interval.low, "high": interval.high, "seconds": seconds,
                    "frontier": shares.get(entry.name, 0.0),
                }
            )  # fmt: skip
    if not points:
        return None
    _place_names(points)
    base = alt.Chart(_table(points)).encode(
        x=alt.X("seconds:Q", title="training seconds (features and steps)", scale=alt.Scale(zero=True)),
        color=_colour("strategy", [str(point["strategy"]) for point in points], legend=False),
    )
    tooltip = [
        alt.Tooltip("strategy:N"), alt.Tooltip("score:Q", format=".3f"), alt.Tooltip("low:Q", format=".3f"),
        alt.Tooltip("high:Q", format=".3f"), alt.Tooltip("seconds:Q", format=".1f"),
        alt.Tooltip("frontier:Q", format=".0%", title="on the frontier"),
    ]  # fmt: skip
    bars = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title=score), y2="high:Q")
    dots = base.mark_point(size=90, filled=True).encode(y="score:Q", tooltip=tooltip)
    names = base.mark_text(align="left", dx=9, fontSize=12).encode(y="label:Q", text="strategy:N")
    return _spec(bars + dots + names, 320)


def _place_names(points: list[dict[str, Any]]) -> None:
    """Set each point's `label`, the height of its name: the point's own, or lower to avoid overlap with another name."""
    width = _LABEL_WIDTH * max(point["seconds"] for point in points)
    height = _LABEL_HEIGHT * (max(point["high"] for point in points) - min(point["low"] for point in points))
    placed: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: -float(point["score"])):
        near = [other["label"] for other in placed if abs(other["seconds"] - point["seconds"]) < width]
        point["label"] = min([point["score"], *(label - height for label in near)])
        placed.append(point)


def where_the_time_went(group: Group) -> dict[str, Any]:
    """Seconds of each phase, averaged over each entry's runs, as stacked bars."""
    rows = [
        {"strategy": entry.name, "phase": label, "seconds": seconds, "order": number}
        for entry in group.entries
        for number, (phase, (label, _)) in enumerate(_PHASES.items())
        if (seconds := entry.phase(phase))
    ]
    chart = (
        alt.Chart(_table(rows))
        .mark_bar()
        .encode(
            y=alt.Y("strategy:N", title=None, sort=[entry.name for entry in group.entries]),
            x=alt.X("seconds:Q", title="seconds"),
            color=_colour("phase", [label for label, _ in _PHASES.values()], [colour for _, colour in _PHASES.values()]),
            order="order:Q",
            tooltip=["strategy:N", "phase:N", alt.Tooltip("seconds:Q", format=".1f")],
        )
    )
    return _spec(chart, 34 * len({row["strategy"] for row in rows}) + 20)


def learning_curves(group: Group) -> dict[str, Any] | None:
    """Training loss over steps, averaged over neighbouring steps, for the first seed of each entry."""
    rows = []
    for entry in group.entries:
        losses = np.array(entry.records[0].train_loss or ())
        for block in np.array_split(np.arange(len(losses)), min(_POINTS, len(losses))) if len(losses) else ():
            rows.append({"strategy": entry.name, "step": int(block[-1]) + 1, "loss": float(losses[block].mean())})
    if not rows:
        return None
    names = list(dict.fromkeys(str(row["strategy"]) for row in rows))
    chart = (
        alt.Chart(_table(rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("loss:Q", title="training loss (logarithmic)", scale=alt.Scale(type="log", nice=True)),
            color=_colour("strategy", names),
            strokeDash=alt.StrokeDash("strategy:N", sort=names, legend=None),
            tooltip=["strategy:N", "step:Q", alt.Tooltip("loss:Q", format=".3f")],
        )
    )
    return _spec(chart, 280)


def _table(values: Sequence[dict[str, Any]]) -> alt.InlineData:
    return alt.InlineData(values=list(values))


def _colour(field: str, names: list[str], colours: Sequence[str] = COLOURS, *, legend: bool = True) -> alt.Color:
    colours = [colours[i % len(colours)] for i in range(len(names))]
    shown = alt.Legend(title=None, orient="bottom", columns=2) if legend else None
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=names, range=colours), legend=shown)


def _spec(chart: alt.Chart | alt.LayerChart, height: int) -> dict[str, Any]:
    spec: dict[str, Any] = chart.properties(width="container", height=height).to_dict()
    return spec
