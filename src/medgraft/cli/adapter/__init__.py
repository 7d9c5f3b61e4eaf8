"""`medgraft adapter`: look at, check, merge, shrink and share adapters. One module for each action."""

from __future__ import annotations

import argparse

from medgraft.cli.adapter import combine, diff, extract, inspect, merge, pull, push, verify
from medgraft.cli.options import add_command

NAME = "adapter"
SUMMARY = "inspect, verify, compare, merge, shrink, push, pull adapters"
EXAMPLE = "medgraft adapter inspect my-adapter"
_ACTIONS = (inspect, verify, diff, merge, combine, extract, push, pull)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for action in _ACTIONS:
        add_command(actions, action, run_action=action.run)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    code: int = arguments.run_action(arguments)
    return code
