"""`medgraft report`: the table of stored records, or the whole report."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
SUMMARY = "print the table of the records in a folder, or write the report as one page"
EXAMPLE = "medgraft report medgraft-results/quickstart --format html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the --out of `medgraft bench`")
    parser.add_argument("--format", choices=("text", "md", "json", "csv", "html", "peft"), default="text")
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="output file (html: default DIR/report.html; peft: folder for files in the layout of PEFT's method_comparison)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.benchmark.record import read_records
    from medgraft.plugin import PluginManager
    from medgraft.report import as_csv, as_json, html_report, markdown, read_results, rows, terminal, write_peft_results

    manager = PluginManager.from_environment()
    records = read_records(arguments.folder)
    out = arguments.out
    if arguments.format == "peft":
        out = out or arguments.folder / "peft-results"
        print(f"{write_peft_results(records, out, plugins=manager)} files written to {out}")
        return 0
    results = read_results(arguments.folder, plugins=manager, records=records)
    if arguments.format == "html":
        out = out or arguments.folder / "report.html"
        text = html_report(arguments.folder.resolve().name, records, results, arguments.folder, plugins=manager)
    else:
        text = {"text": terminal, "md": markdown, "json": as_json, "csv": as_csv}[arguments.format](rows(records, results))
    if out is None:
        print(text)
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    print(f"Written to {out}")
    return 0
