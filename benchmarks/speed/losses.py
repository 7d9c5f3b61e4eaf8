"""The losses of both sides of the race over each other, as an SVG: `python benchmarks/speed/losses.py RECORD.json PLOT.svg`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert


def plot(record: dict[str, Any]) -> alt.Chart:
    """One small plot a strategy; the Trainer's losses as a line, medgraft's as points on it."""
    sides, every = {"trainer_script", "medgraft_side"}, record["runs"].items()
    both = {name: run for name, run in every if sides <= run.keys() and not name.startswith("profile")}
    runs = {name: run for name, run in both.items() if len(run["trainer_script"]["losses"]) > 1}
    rows = [
        {"strategy": name, "side": side, "step": step, "loss": loss}
        for name, run in runs.items()
        for side, key in (("Trainer", "trainer_script"), ("medgraft", "medgraft_side"))
        for step, loss in enumerate(run[key]["losses"], start=1)
    ]
    base = alt.Chart().encode(
        x=alt.X("step:Q", title="step"), y=alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False)),
        color=alt.Color("side:N", title=None, scale=alt.Scale(range=["#D55E00", "#0072B2"])),
    )  # fmt: skip
    line = base.transform_filter("datum.side == 'Trainer'").mark_line(strokeWidth=2)
    points = base.transform_filter("datum.side == 'medgraft'").mark_point(size=22, filled=True)
    each: alt.Chart = alt.layer(line, points, data=alt.InlineData(values=rows)).properties(width=180, height=120)
    return each.facet("strategy:N", columns=4)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    chart = plot(json.loads(source.read_text(encoding="utf-8")))
    target.write_text(vl_convert.vegalite_to_svg(chart.to_json()), encoding="utf-8")
