"""`medgraft compare`: which scores got better, worse or stayed undecided between two results."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from medgraft.cli.options import add_json

if TYPE_CHECKING:
    from medgraft.plugin import ScoreSpec
    from medgraft.report.comparison import Change

NAME = "compare"
SUMMARY = "compare two results; exits with 1 if significantly worse"
EXAMPLE = "medgraft compare medgraft-results/before medgraft-results/after --score cider --score finding_f1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    what = "the --out of `medgraft bench`, a run's folder, or a file of captions, as of `medgraft evaluate --predictions`"
    for name, help_text in (("before", what), ("after", "the same, to compare with; in any mix")):
        parser.add_argument(name, type=Path, metavar=name.upper(), help=help_text)
    parser.add_argument(
        "--references", type=Path, metavar="R", help="a file's references; default: those of the other side, if it is a run"
    )
    parser.add_argument("--score", action="append", dest="scores", metavar="NAME", help="may be repeated (default: cider)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.plugin import MAIN_SCORE, KnownScores, PluginManager
    from medgraft.report import compare

    scores, plugins = arguments.scores or [MAIN_SCORE], PluginManager.from_environment()
    changes = compare(arguments.before, arguments.after, scores=scores, plugins=plugins, references=arguments.references)
    if arguments.json:
        print(json.dumps([{"entry": change.entry, **asdict(change)} for change in changes], indent=2))
    else:
        print(f"before: {arguments.before}\nafter:  {arguments.after}\n")
        print("\n".join(_lines(change, KnownScores(plugins)[change.score]) for change in changes))
        print(f"\n{_notes(changes, [KnownScores(plugins)[score] for score in scores])}")
    return 1 if any(change.verdict == "worse" for change in changes) else 0


def _lines(change: Change, spec: ScoreSpec) -> str:
    """The verdict, what is compared with what, and the numbers."""
    low, high = change.difference.interval.low, change.difference.interval.high
    test = f"[{low:+.3f}, {high:+.3f}], p {change.p:.3f}" if change.tested else "no test"
    names = [change.before_run] if change.before_run == change.after_run else [f"{change.before_run} ->", change.after_run]
    numbers = f"{spec.heading} {change.before:.3f} -> {change.after:.3f}, {change.difference.value:+.3f} {test}"
    return "\n".join([f"{change.verdict:<9} {names[0]}", *(f"          {line}" for line in (*names[1:], numbers))])


def _notes(changes: Sequence[Change], specs: Sequence[ScoreSpec]) -> str:
    notes = [f"{spec.heading}: {spec.explanation}." for spec in specs]
    if any(change.tested for change in changes):
        notes.append(
            "95 % intervals over groups of test images; p-values are Holm-corrected for all comparisons. They include the "
            "variation between seeds only where both results have several seeds."
        )
    if not all(change.tested for change in changes):
        notes.append("No test: the metric scores all images together only.")
    return "\n".join(textwrap.fill(note, 80) for note in notes)
