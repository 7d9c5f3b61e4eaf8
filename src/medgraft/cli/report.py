"""`medgraft report`: the table of stored records, or the whole report."""

from __future__ import annotations

import argparse
from pathlib import Path

from medgraft.errors import ConfigError

NAME = "report"
SUMMARY = "print the table of records, or write it as one page"
EXAMPLE = "medgraft report medgraft-results/quickstart --format html"
_EXAMPLES = {"html": "both.html", "peft": "peft-results"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="the --out of `medgraft bench` or `train`; several: together",
    )
    parser.add_argument("--format", choices=("text", "md", "json", "csv", "html", "peft"), default="text")
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="output file (html: default DIR/report.html; peft: folder for files in the layout of PEFT's method_comparison)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.benchmark import read_all_records
    from medgraft.plugin import PluginManager
    from medgraft.report import as_csv, as_json, markdown, read_results, rows, terminal, write_peft_results

    plugins, (folder, *others), out = PluginManager.from_environment(), arguments.folders, arguments.out
    if others and out is None and arguments.format in ("html", "peft"):
        raise ConfigError(f"Several folders have no common place for a report. Name one: --out {_EXAMPLES[arguments.format]}")
    records = read_all_records(arguments.folders)
    if arguments.format == "peft":
        out = out or folder / "peft-results"
        print(f"{write_peft_results(records, out, plugins=plugins)} files written to {out}")
        return 0
    results = read_results(folder, plugins=plugins, records=records)
    if arguments.format == "html":
        from medgraft.report import html_report

        out = out or folder / "report.html"
        title = " and ".join(each.resolve().name for each in arguments.folders)
        text = html_report(title, records, results, folder, plugins=plugins)
    else:
        table = rows(records, results, plugins=plugins)
        text = {"text": terminal, "md": markdown, "json": as_json, "csv": as_csv}[arguments.format](table)
    if out is None:
        print(text)
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    print(f"Written to {out}")
    return 0
