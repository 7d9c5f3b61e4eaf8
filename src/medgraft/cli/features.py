"""`medgraft features`: lists, prunes and verifies the feature store."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime

from medgraft.cli.options import add_json
from medgraft.errors import ConfigError

NAME = "features"
SUMMARY = "list, prune or verify the stored features of frozen parts"
EXAMPLE = "medgraft features prune --older-than 30"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("action", choices=("ls", "prune", "verify"))
    parser.add_argument("--older-than", type=float, metavar="DAYS", help="prune features not used for DAYS days")
    parser.add_argument("--max-gb", type=float, metavar="N", help="prune the least recently used until N GB are left")
    parser.add_argument("--all", action="store_true", help="prune everything")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    if arguments.action == "verify":
        return _verify(arguments.json)
    from medgraft.features import collections, prune, store_folder

    if arguments.action == "prune":
        if not arguments.all and arguments.older_than is None and arguments.max_gb is None:
            raise ConfigError("Nothing to prune was named: add --older-than DAYS, --max-gb N or --all.")
        limit = None if arguments.max_gb is None else int(arguments.max_gb * 1e9)
        age = 0.0 if arguments.all else arguments.older_than
        listed = prune(older_than_days=age, max_bytes=limit)
    else:
        listed = collections()
    if arguments.json:
        print(json.dumps([asdict(info) | {"folder": str(info.folder)} for info in listed], indent=2))
        return 0
    for info in listed:
        used = datetime.fromtimestamp(info.used, UTC).strftime("%Y-%m-%d")
        about = f"{info.key.get('backbone', '?')} at {info.key.get('seam', '?')}, {info.key.get('computed', '?')}"
        print(f"{info.folder.name[:12]}  {about}: {info.features} features, {info.bytes / 1e6:,.1f} MB, used {used}")
    if arguments.action == "prune":
        print(f"{len(listed)} collections deleted, {sum(info.bytes for info in listed) / 1e6:,.1f} MB")
    else:
        print(f"{sum(info.bytes for info in listed) / 1e6:,.1f} MB in {store_folder()}" if listed else "The store is empty.")
    return 0


def _verify(as_json: bool) -> int:
    from medgraft.features import verify

    damaged, sound = verify()
    if as_json:
        print(json.dumps({"damaged": [str(path) for path in damaged], "sound": sound}, indent=2))
    else:
        for path in damaged:
            print(f"damaged: {path}")
        if damaged:
            print(f"{len(damaged)} shard{'s were' if len(damaged) > 1 else ' was'} damaged; they will be rebuilt.")
        print(f"{sound} features are intact.")
    return 1 if damaged else 0
