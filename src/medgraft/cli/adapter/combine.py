"""`medgraft adapter combine`: several adapters of one base as one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medgraft.cli.options import ADAPTER, add_json

NAME = "combine"
SUMMARY = "add or average adapters of one base, by PEFT's methods"
EXAMPLE = "medgraft adapter combine chest head --weights 0.5 0.5 --out both"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help=ADAPTER)
    parser.add_argument("--weights", required=True, nargs="+", type=float, metavar="W", help="one for each adapter")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--method", metavar="M",
        help="PEFT's for LoRA: cat (the exact sum, default), svd, linear, ties, dare_linear, dare_ties, magnitude_prune, each "
        "of the last four also with _svd appended; linear alone for what was trained in place",
    )  # fmt: skip
    parser.add_argument(
        "--density", type=float, default=0.5, metavar="D", help="share of values that ties, dare and magnitude_prune keep"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for the values that dare drops")
    parser.add_argument("--backbone", metavar="B", help="NAME:SOURCE, the location of the base")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from dataclasses import asdict

    from medgraft import conversion
    from medgraft.plugin import PluginManager

    combined = conversion.combine_adapters(
        arguments.adapters,
        arguments.weights,
        arguments.out,
        plugins=PluginManager.from_environment(),
        backbone=arguments.backbone,
        options=conversion.CombineOptions(arguments.method, arguments.density, arguments.seed),
    )
    if arguments.json:
        print(json.dumps(asdict(combined), indent=2))
    else:
        rank = f", rank {combined.rank}" if combined.rank else ""
        made = f"{len(arguments.adapters)} adapters by {combined.method}{rank}"
        print(f"{combined.folder}: {made}, {combined.bytes / 2**20:.2f} MiB")
    return 0
