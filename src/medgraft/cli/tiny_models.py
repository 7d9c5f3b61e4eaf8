"""`medgraft tiny-models`: writes small random models for offline use."""

from __future__ import annotations

import argparse
from pathlib import Path

from medgraft.errors import UnknownNameError, suggestion
from medgraft.plugin import BackboneSpec, PluginManager
from medgraft.quiet import quiet_libraries

NAME = "tiny-models"
SUMMARY = "write small random models of every architecture, for trials"
EXAMPLE = "medgraft tiny-models models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    import transformers  # noqa: F401 - writing a model imports it, and only what is imported can be silenced

    quiet_libraries()
    specs = [spec for spec, _ in PluginManager.from_environment().specs("backbone") if isinstance(spec, BackboneSpec)]
    known = [name for spec in specs for name in spec.tiny]
    for name in arguments.names:
        if name not in known:
            raise UnknownNameError(f"Unknown tiny model {name!r}.{suggestion(name, known)} Known: {', '.join(known)}.")
    for spec in specs:
        for name in spec.tiny:
            if not arguments.names or name in arguments.names:
                print(f"{spec.name}:{spec.write_tiny(name, arguments.folder / name)}", flush=True)
    return 0
