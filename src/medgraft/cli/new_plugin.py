"""`medgraft new-plugin`: writes a plugin package as a starting point."""

from __future__ import annotations

import argparse
from pathlib import Path

from medgraft.plugin import KINDS

NAME = "new-plugin"
SUMMARY = "write a plugin package to start from, which passes its test"
EXAMPLE = "medgraft new-plugin medgraft-llava --kind backbone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("name", metavar="NAME", help="the package's name, such as medgraft-llava")
    parser.add_argument("--kind", required=True, choices=sorted(KINDS), metavar="KIND", help=", ".join(sorted(KINDS)))
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="parent folder of the package (default: here)")


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.scaffold import new_plugin

    folder = new_plugin(arguments.name, arguments.kind, arguments.out)
    for path in sorted(folder.rglob("*.*")):
        print(path)
    if arguments.kind == "backbone":
        print("\nIt is a backbone for LLaVA under your name: replace its classes by those of your model.")
    print(f"\nInstall it:  pip install -e {folder}\nCheck it:    medgraft check-plugin {arguments.name}")
    return 0
