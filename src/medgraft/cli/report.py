"""`medgraft report`: the table of stored records."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
SUMMARY = "print the table of the records in a folder"
EXAMPLE = "medgraft report medgraft-results/quickstart --format md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the --out of `medgraft bench`")
    parser.add_argument("--format", choices=("text", "md", "json"), default="text")


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.benchmark.record import read_records
    from medgraft.report import as_json, markdown, rows, terminal

    table = rows(read_records(arguments.folder))
    print({"text": terminal, "md": markdown, "json": as_json}[arguments.format](table))
    return 0
