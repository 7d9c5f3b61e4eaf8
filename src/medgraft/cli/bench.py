"""`medgraft bench`: a grid of runs and its table."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from medgraft.cli.options import add_dtype, add_json, add_set
from medgraft.quiet import quiet_libraries

NAME = "bench"
SUMMARY = "run a suite: every strategy on every backbone, with quality, time, memory and size in one table"
EXAMPLE = "medgraft bench benchmarks/suites/quickstart.toml --out results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("suite", type=Path, metavar="SUITE", help="a TOML file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where records go (default: medgraft-results/SUITE's name)")
    add_set(parser, "train.K=V, generation.K=V or data.K=V for every run, such as data.path=/data/roco")
    add_dtype(parser, "default: the suite's, else auto, the fastest that this machine has")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="replace the suite's seeds, such as --seeds 0 1 2")
    parser.add_argument("--dry-run", action="store_true", help="print downloads, estimated cost and what is missing, and stop")
    parser.add_argument("--retry-failed", action="store_true", help="repeat runs that failed")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.config import load_suite

    dtype = [f"train.dtype={arguments.dtype}"] if arguments.dtype else []
    suite = load_suite(arguments.suite, [*arguments.overrides, *dtype])
    if arguments.seeds:
        suite = suite.model_copy(update={"seeds": tuple(arguments.seeds)})
    from medgraft.benchmark import dry_run_suite, run_suite
    from medgraft.plugin import PluginManager
    from medgraft.report import (
        as_json,
        attention_markdown,
        dry_run_text,
        example_captions,
        html_report,
        markdown,
        read_results,
        rows,
        terminal,
    )

    quiet_libraries()
    if arguments.dry_run:
        dry_run = dry_run_suite(suite, plugins=PluginManager.from_environment())
        print(json.dumps(asdict(dry_run), indent=2) if arguments.json else dry_run_text(dry_run))
        return 1 if dry_run.missing else 0
    out = arguments.out or Path("medgraft-results") / suite.name
    records = run_suite(suite, out, plugins=PluginManager.from_environment(), retry_failed=arguments.retry_failed)
    results = read_results(out, plugins=PluginManager.from_environment())
    table = rows(records, results)
    page = html_report(suite.name, records, results, out, plugins=PluginManager.from_environment())
    (out / "report.html").write_text(page, encoding="utf-8")
    tables = [markdown(table), *filter(None, [attention_markdown(results)])]
    (out / "table.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    (out / "table.json").write_text(as_json(table) + "\n", encoding="utf-8")
    if arguments.json:
        print("[" + ",\n".join(record.model_dump_json() for record in records) + "]")
    else:
        print(f"\n{example_captions(records, out)}\n\n{terminal(table)}\n")
        print(f"Report: {out / 'report.html'}; records, tables and adapters are in the same folder.")
    return 1 if any(record.status == "failed" for record in records) else 0
