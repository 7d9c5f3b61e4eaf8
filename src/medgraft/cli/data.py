"""`medgraft data`: what a data set holds, and what a run makes of it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from medgraft.cli.options import add_json, add_set

NAME = "data"
SUMMARY = "inspect a data set: what it holds, what a run refuses or cuts"
EXAMPLE = "medgraft data inspect csv:reports.csv --out reports.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("action", choices=("inspect",))
    parser.add_argument("data", metavar="NAME[:PATH]", help="such as phantoms or roco:/data/roco")
    parser.add_argument(
        "--backbone", default="blip-nano", metavar="B", help="NAME or NAME:SOURCE that sees the images and counts the tokens"
    )
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N images of each split")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: in medgraft-results, none with --json)")
    add_set(parser, "data.K=V, or a setting of runs such as train.max_text_tokens=64; may be repeated")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli. Returns 1 if a run that trains would refuse the data."""
    from medgraft.config import run_config

    config = run_config(
        backbone=arguments.backbone, strategy="full", data=arguments.data,
        max_images=arguments.max_images, overrides=arguments.overrides,
    )  # fmt: skip
    from medgraft.inspection import inspect_data
    from medgraft.plugin import PluginManager
    from medgraft.report import data_page, data_text

    inspected = inspect_data(config, plugins=PluginManager.from_environment())
    found = inspected.inspection
    out: Path | None = arguments.out
    if out is None and not arguments.json:
        out = Path("medgraft-results") / f"data-{_file_name(found.data)}.html"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(data_page(inspected), encoding="utf-8")
    if arguments.json:
        print(found.model_dump_json(indent=1))
    else:
        print(f"{data_text(found)}\n\nPage: {out}")
    return 1 if found.refusal else 0


def _file_name(data: str) -> str:
    """A file's name from NAME:PATH: the reader and the last two parts of the path."""
    name, _, path = data.partition(":")
    *folder, last = Path(path).parts[-2:] or ("",)
    return re.sub(r"[^\w.]+", "-", "-".join([name, *folder, Path(last).stem])).strip("-")
