"""`medgraft list`: names of backbones, strategies, data sets and metrics."""

from __future__ import annotations

import argparse
import json

from medgraft.cli.options import add_json
from medgraft.plugin import KINDS, Kind, PluginManager

NAME = "list"
SUMMARY = "list backbones, strategies, data sets and metrics"
EXAMPLE = "medgraft list strategies"
_PLURAL: dict[str, Kind] = {"backbones": "backbone", "strategies": "strategy", "datasets": "dataset", "metrics": "metric"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("kind", nargs="?", choices=sorted(_PLURAL), help="only these")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    plugins = PluginManager.from_environment()
    kinds = [_PLURAL[arguments.kind]] if arguments.kind else list(KINDS)
    plural = {kind: name for name, kind in _PLURAL.items()}
    table = {
        plural[kind]: [
            {"name": spec.name, "summary": spec.summary, "distribution": owner} for spec, owner in plugins.specs(kind)
        ]
        for kind in kinds
    }
    if arguments.json:
        print(json.dumps(table, indent=2))
        return 0
    for title, entries in table.items():
        print(f"{title}:")
        for entry in entries:
            owner = "" if entry["distribution"] == "medgraft" else f" [{entry['distribution']}]"
            print(f"  {entry['name']:<15} {entry['summary']}{owner}")
        if title == "strategies":
            print("  peft:<METHOD>   any PEFT method for linear layers, such as peft:LOHA or peft:VERA")
        print()
    for failure in plugins.failures:
        print(f"plugin {failure.plugin} ({failure.distribution}) failed to load: {failure.message}")
    return 0
