"""`medgraft`: parses the command line and runs a command; a user's mistake becomes one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import medgraft
from medgraft.cli import (
    adapter,
    bench,
    caption,
    check_plugin,
    compare,
    data,
    evaluate,
    explain,
    features,
    list_names,
    new_plugin,
    phantoms,
    plugins,
    report,
    score,
    tiny_models,
    train,
)  # fmt: skip
from medgraft.errors import MedgraftError
from medgraft.progress import log_to_stderr
from medgraft.quiet import quiet_libraries

_COMMANDS = (
    list_names, plugins, phantoms, tiny_models, data, train, adapter, evaluate, caption, explain, score, bench, report, compare,
    features, new_plugin, check_plugin,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 on success, 2 after a user's mistake, with one line on stderr."""
    arguments = _parser().parse_args(argv)
    quiet_libraries()
    level = logging.DEBUG if arguments.verbose else logging.WARNING if arguments.quiet else logging.INFO
    try:
        with log_to_stderr(level):
            code: int = arguments.run(arguments)
    except MedgraftError as error:
        print(f"medgraft: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmedgraft: stopped. Finished work is saved; run the same command again to continue.", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medgraft",
        description="Adapt vision-language models to medical image captioning; compare the cost and quality of ways to train.",
        epilog="example:\n  medgraft train --backbone blip-nano --strategy lora --data phantoms --out my-adapter",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medgraft {medgraft.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        own = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.SUMMARY[0].upper() + command.SUMMARY[1:] + ".",
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(own)
        talk = own.add_mutually_exclusive_group()
        talk.add_argument("-v", "--verbose", action="store_true", help="also log details for debugging")
        talk.add_argument("-q", "--quiet", action="store_true", help="no progress, only warnings and the result")
        own.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
