"""`medgraft export`: writes predictions in the layouts of other evaluators."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medgraft.cli.options import add_json

NAME = "export"
SUMMARY = "write predictions in the layout of ImageCLEFmedical's submissions or of R2Gen's results"
EXAMPLE = "medgraft export --predictions medgraft-results/my-run --layout r2gen --out my-results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="P",
        help="a run's folder, or captions as `medgraft score` takes them",
    )
    parser.add_argument(
        "--references", type=Path, metavar="R", help="r2gen: as of `medgraft score`; a run's folder has its own"
    )
    parser.add_argument(
        "--layout", choices=("imageclef", "r2gen"), required=True, metavar="L",
        help="imageclef: a CSV with ID and Caption; r2gen: res.csv, gts.csv and ids.csv, a report a line",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="imageclef: a file .csv; r2gen: a folder")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.scoring import export_predictions

    written = export_predictions(arguments.layout, arguments.out, arguments.predictions, arguments.references)
    if arguments.json:
        print(json.dumps({"written": list(map(str, written))}))
    else:
        print("\n".join(f"Written to {path}" for path in written))
    return 0
