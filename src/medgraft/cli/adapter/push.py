"""`medgraft adapter push`: publish an adapter on the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys

NAME = "push"
SUMMARY = "upload an adapter to the Hugging Face hub, as a private repository unless --public is given"
EXAMPLE = "medgraft adapter push my-adapter USER/REPO"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("adapter", metavar="ADAPTER", help="the adapter's folder")
    parser.add_argument("repository", metavar="USER/REPO[@BRANCH]", help="where to; made if it does not exist")
    parser.add_argument("--public", action="store_true", help="anyone may download it")
    parser.add_argument("--yes", action="store_true", help="do not ask before uploading")
    parser.add_argument("--message", metavar="TEXT", help="the message of the commit")


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.adapter.hub import named_on_hub
    from medgraft.adapter.locating import locate_adapter
    from medgraft.adapter.pushing import plan_push, push
    from medgraft.errors import AdapterError

    name = named_on_hub(arguments.repository)
    plan = plan_push(locate_adapter(arguments.adapter), name, public=arguments.public)
    print(plan, file=sys.stderr)
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise AdapterError("Nothing was uploaded, as there is no terminal to ask on. Add --yes to upload this.")
        print("Upload this? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise AdapterError("Nothing was uploaded.")
    done = push(plan, message=arguments.message)
    print(f"{done.url} is at commit {done.commit}")
    return 0
