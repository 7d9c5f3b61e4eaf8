"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_json(parser: argparse.ArgumentParser) -> None:
    """Machine-readable output."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --set, which changes any setting by name."""
    parser.add_argument("--set", action="append", default=[], metavar="K=V", dest="overrides", help=what)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --adapter and --backbone; at least one is required."""
    parser.add_argument(
        "--adapter", metavar="ADAPTER", help="folder made by `medgraft train` or PEFT, or USER/REPO[@REVISION] on the hub"
    )
    parser.add_argument("--backbone", metavar="B", help="NAME or NAME:SOURCE; with --adapter, its base's location")


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the options of caption generation."""
    parser.add_argument(
        "--num-beams", type=int, metavar="N", help="beam search with N beams (default: greedy, or the adapter's)"
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="maximum length of a caption in tokens")
