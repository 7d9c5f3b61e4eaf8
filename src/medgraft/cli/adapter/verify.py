"""`medgraft adapter verify`: whether an adapter is whole and unaltered."""

from __future__ import annotations

import argparse
import json

from medgraft.cli.options import ADAPTER, add_json
from medgraft.escaping import one_line

NAME = "verify"
SUMMARY = "check an adapter's files, digests, headers and values; exits with 1 if something is wrong"
EXAMPLE = "medgraft adapter verify my-adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli. Returns 1 if something is wrong."""
    from medgraft.adapter import locate_adapter
    from medgraft.adapter.contents import verify
    from medgraft.adapter.manifest import MANIFEST

    folder = locate_adapter(arguments.adapter)
    problems = verify(folder)
    signed = (folder / MANIFEST).exists()
    if arguments.json:
        print(json.dumps({"folder": str(folder), "digests": signed, "problems": problems}, indent=1))
    elif problems:
        print("\n".join(map(one_line, problems)))
    else:
        how = "all digests agree" if signed else "a plain PEFT adapter, without digests to compare"
        print(one_line(f"{folder}: nothing is wrong; {how}."))
    return 1 if problems else 0
