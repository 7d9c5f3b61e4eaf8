"""`medgraft bench`: a grid of runs and its table."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from medgraft.cli.options import add_device_map, add_dtype, add_json, add_metrics, add_set, model_settings
from medgraft.errors import ConfigError, Stopped
from medgraft.quiet import quiet_libraries

if TYPE_CHECKING:
    from medgraft.benchmark import Record
    from medgraft.plugin import PluginManager

NAME = "bench"
SUMMARY = "run a suite: every strategy on every backbone, in one table"
EXAMPLE = "medgraft bench benchmarks/suites/quickstart.toml --out results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("suite", type=Path, metavar="SUITE", help="a TOML file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where records go (default: medgraft-results/SUITE's name)")
    add_set(parser, "train.K=V, generation.K=V or data.K=V for every run, such as data.path=/data/roco")
    add_dtype(parser, "default: the suite's, else auto, the fastest that this machine has")
    add_device_map(parser)
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="replace the suite's seeds, such as --seeds 0 1 2")
    add_metrics(parser, "the suite's")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print downloads, estimated cost and what is missing, and stop; fitted to records in --out",
    )
    parser.add_argument(
        "--probe", action="store_true",
        help="with --dry-run: measure time and memory by a few steps and a batch of captions of each run that fits here",
    )  # fmt: skip
    parser.add_argument("--retry-failed", action="store_true", help="repeat runs that failed")
    parser.add_argument("--executor", metavar="NAME", help="what does the runs: local (default), submitit (SLURM) or ray")
    parser.add_argument("--workers", type=int, metavar="N", help="most runs at once; with --dry-run, the workers to plan for")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.config import load_suite

    given = {"train.dtype": arguments.dtype, "executor.name": arguments.executor, "executor.workers": arguments.workers}
    named = [f"{key}={value}" for key, value in given.items() if value is not None]
    suite = load_suite(arguments.suite, [*arguments.overrides, *named, *model_settings(arguments)])
    if arguments.probe and not arguments.dry_run:
        raise ConfigError("--probe measures runs for --dry-run; add --dry-run, or leave it out.")
    if arguments.seeds:
        suite = suite.model_copy(update={"seeds": tuple(arguments.seeds)})
    from medgraft.benchmark import dry_run_suite, read_records, run_suite
    from medgraft.metrics import with_task_metrics
    from medgraft.plugin import PluginManager
    from medgraft.report import dry_run_text
    from medgraft.training import sigterm_raises

    quiet_libraries()
    plugins = PluginManager.from_environment()
    suite = with_task_metrics(suite, suite.data, arguments.metrics_added, plugins=plugins)
    out = arguments.out or Path("medgraft-results") / suite.name
    if arguments.dry_run:
        records = read_records(out) if any((out / "records").glob("*.json")) else ()
        dry_run = dry_run_suite(suite, plugins=plugins, records=records, probes=arguments.probe)
        print(json.dumps(asdict(dry_run), indent=2) if arguments.json else dry_run_text(dry_run))
        return 1 if dry_run.missing else 0
    try:
        with sigterm_raises():
            records = run_suite(suite, out, plugins=plugins, retry_failed=arguments.retry_failed)
    except KeyboardInterrupt as stop:
        twice = isinstance(stop.__context__, KeyboardInterrupt)
        if not twice and any((out / "records").glob("*.json")):
            _show(read_records(out), suite.name, out, plugins, as_json=arguments.json)
        print("\nmedgraft: stopped. Finished runs are kept; the same command does the rest.", file=sys.stderr)
        return 128 + (stop.signal if isinstance(stop, Stopped) else signal.SIGINT)
    _show(records, suite.name, out, plugins, as_json=arguments.json)
    return 1 if any(record.status == "failed" for record in records) else 0


def _show(records: Sequence[Record], name: str, out: Path, plugins: PluginManager, *, as_json: bool) -> None:
    """Write the report and the tables of `records`, and print them."""
    from medgraft.disk import write_whole
    from medgraft.report import as_json as table_as_json
    from medgraft.report import attention_markdown, example_captions, html_report, markdown, read_results, rows, terminal

    results = read_results(out, plugins=plugins)
    table = rows(records, results, plugins=plugins)
    if as_json:
        print("[" + ",\n".join(record.model_dump_json() for record in records) + "]")
    else:
        print(f"\n{example_captions(records, out)}\n\n{terminal(table)}\n")
    tables = [markdown(table), *filter(None, [attention_markdown(results)])]
    write_whole(out / "report.html", html_report(name, records, results, out, plugins=plugins))
    write_whole(out / "table.md", "\n\n".join(tables) + "\n")
    write_whole(out / "table.json", table_as_json(table) + "\n")
    if not as_json:
        print(f"Report: {out / 'report.html'}; records, tables and adapters are in the same folder.")
