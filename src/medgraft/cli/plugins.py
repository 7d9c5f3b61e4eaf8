"""`medgraft plugins`: which plugin provides what, and load failures."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from medgraft.cli.options import add_json
from medgraft.plugin import PluginManager

NAME = "plugins"
SUMMARY = "list installed plugins, what they provide, and what failed"
EXAMPLE = "medgraft plugins"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    manager = PluginManager.from_environment()
    loaded = manager.plugins()
    if arguments.json:
        table = {
            "plugins": [asdict(plugin) for plugin in loaded],
            "failures": [asdict(failure) for failure in manager.failures],
            "disabled": sorted(manager.disabled),
        }
        print(json.dumps(table, indent=2))
        return 0
    for plugin in loaded:
        print(f"{plugin.plugin} ({plugin.distribution} {plugin.version}, {plugin.location})")
        for kind, names in plugin.provides.items():
            if names:
                print(f"  {kind}: {', '.join(names)}")
    for failure in manager.failures:
        print(f"FAILED {failure.plugin} ({failure.distribution}): {failure.message}")
    for name in sorted(manager.disabled):
        print(f"disabled: {name}")
    return 0
