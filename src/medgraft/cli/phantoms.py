"""`medgraft phantoms`: writes the embedded data set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medgraft.cli.options import add_json
from medgraft.errors import ConfigError

NAME = "phantoms"
SUMMARY = "write synthetic radiology images with captions and facts"
EXAMPLE = "medgraft phantoms --count 500 --out my-phantoms --seed 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("--count", type=int, required=True, metavar="N", help="images in all three splits together")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same files (default: 0)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.data.phantoms import write_phantoms

    if arguments.count < 1:
        raise ConfigError(f"--count {arguments.count}: at least one image is needed.")
    counts = write_phantoms(arguments.out, count=arguments.count, seed=arguments.seed)
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), "seed": arguments.seed, "images": counts}))
    else:
        print(f"{arguments.out}: " + ", ".join(f"{number} {split}" for split, number in counts.items()))
        print(f"Use it with --data phantoms:{arguments.out}")
    return 0
