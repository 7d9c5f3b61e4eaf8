"""`medgraft compare`: which scores got better, worse or stayed undecided between two results."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from medgraft.cli.options import add_json

NAME = "compare"
SUMMARY = "compare two results on the same images; exit code 1 if something is significantly worse"
EXAMPLE = "medgraft compare medgraft-results/before medgraft-results/after --score cider --score finding_f1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    for name, what in (("before", "the --out of `medgraft bench`, or a run's folder"), ("after", "the same, to compare with")):
        parser.add_argument(name, type=Path, metavar=name.upper(), help=what)
    parser.add_argument("--score", action="append", dest="scores", metavar="NAME", help="may be repeated (default: cider)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.plugin import PluginManager
    from medgraft.report import compare

    scores = arguments.scores or ["cider"]
    changes = compare(arguments.before, arguments.after, scores=scores, plugins=PluginManager.from_environment())
    if arguments.json:
        print(json.dumps([asdict(change) for change in changes], indent=2))
    else:
        for change in changes:
            low, high = change.difference.interval.low, change.difference.interval.high
            print(f"{change.verdict:<9} {change.entry}")
            print(
                f"          {change.score} {change.before:.3f} -> {change.after:.3f}, "
                f"{change.difference.value:+.3f} [{low:+.3f}, {high:+.3f}], p {change.p:.3f}"
            )
        print("\n95 % intervals over groups of test images; p-values are Holm-corrected for all comparisons. They include the")
        print("variation between seeds only where both results have several seeds.")
    return 1 if any(change.verdict == "worse" for change in changes) else 0
