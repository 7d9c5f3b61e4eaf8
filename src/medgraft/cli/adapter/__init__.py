"""`medgraft adapter`: look at, check, merge, shrink and share adapters. One module for each action."""

from __future__ import annotations

import argparse

from medgraft.cli.adapter import combine, extract, merge

NAME = "adapter"
SUMMARY = "inspect, verify, compare, merge, shrink, push and pull adapters"
EXAMPLE = "medgraft adapter merge my-adapter --out merged"
_ACTIONS = (merge, combine, extract)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for action in _ACTIONS:
        own = actions.add_parser(
            action.NAME,
            help=action.SUMMARY,
            description=action.SUMMARY[0].upper() + action.SUMMARY[1:] + ".",
            epilog=f"example:\n  {action.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_arguments(own)
        own.set_defaults(run_action=action.run)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    code: int = arguments.run_action(arguments)
    return code
