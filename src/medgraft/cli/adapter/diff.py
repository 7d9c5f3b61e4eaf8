"""`medgraft adapter diff`: the settings and tensors in which two adapters differ."""

from __future__ import annotations

import argparse
from typing import Any

from medgraft.cli.options import ADAPTER, add_json
from medgraft.escaping import one_line

NAME = "diff"
SUMMARY = "list the settings and tensors in which two adapters differ; exits with 1 if they do"
EXAMPLE = "medgraft adapter diff my-adapter other-adapter"
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    for name in ("first", "second"):
        parser.add_argument(name, metavar="ADAPTER", help=ADAPTER)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli. Returns 1 if they differ."""
    from medgraft.adapter import read_contents
    from medgraft.adapter.inspection import compare_adapters

    found = compare_adapters(read_contents(arguments.first), read_contents(arguments.second))
    if arguments.json:
        print(found.model_dump_json(indent=1))
    else:
        for title, differences in (("settings", found.settings), ("tensors", found.tensors)):
            print(f"{len(differences):,} {title} differ")
            for each in differences[:_SHOWN]:
                print(one_line(f"  {each.name}: {_side(each.first)} -> {_side(each.second)}"))
            if len(differences) > _SHOWN:
                print(f"  and {len(differences) - _SHOWN:,} more, which --json lists")
        print(f"{found.equal:,} tensors are equal")
    return 1 if found.settings or found.tensors else 0


def _side(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:180]}... ({len(text):,} characters)"
