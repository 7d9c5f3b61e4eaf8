"""`medgraft adapter pull`: download an adapter from the Hugging Face hub and verify it."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "pull"
SUMMARY = "download an adapter from the Hugging Face hub and verify it"
EXAMPLE = "medgraft adapter pull USER/REPO@main --out my-adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("repository", metavar="USER/REPO[@REVISION]", help="REVISION is a branch, a tag or a commit")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="copy it there (default: it stays in the hub's cache)")
    parser.add_argument("--overwrite", action="store_true", help="replace the adapter in --out")


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.adapter.hub import named_on_hub
    from medgraft.adapter.pulling import pull

    found = pull(named_on_hub(arguments.repository), arguments.out, overwrite=arguments.overwrite)
    print(f"{found.name} is in {found.folder}")
    return 0
