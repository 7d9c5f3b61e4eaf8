"""`medgraft`: parses the command line and runs a command; a user's mistake becomes one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TextIO, cast

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
    export,
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
from medgraft.cli.options import add_command
from medgraft.disk import lack
from medgraft.errors import ConfigError, MedgraftError
from medgraft.escaping import PrintableStream, one_line
from medgraft.progress import log_to_stderr
from medgraft.quiet import quiet_libraries
from medgraft.redaction import redacted_text

_COMMANDS = (
    list_names, plugins, phantoms, tiny_models, data, train, adapter, evaluate, caption, explain, score, export, bench, report,
    compare, features, new_plugin, check_plugin,
)  # fmt: skip
_IN_PROCESSES = (train.run, evaluate.run, caption.run)  # what torchrun may start


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 on success, 2 after a user's mistake, with one line on stderr."""
    arguments = _parser().parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else list(argv)
    quiet_libraries()
    rank, together = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    first = together == 1 or rank == 0
    if together > 1:  # DDP warns in every process that it looks for parameters without gradients
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    name = "medgraft" if first else f"medgraft (process {rank})"
    level = logging.DEBUG if arguments.verbose else logging.WARNING if arguments.quiet else logging.INFO
    try:
        if together > 1 and arguments.run not in _IN_PROCESSES:
            raise ConfigError("Several processes can train, evaluate and caption. Start any other command without torchrun.")
        with (
            nullcontext(sys.stdout) if first else Path(os.devnull).open("w", encoding="utf-8") as out,
            log_to_stderr(level if first else logging.ERROR),
            redirect_stdout(cast(TextIO, PrintableStream(out))),
        ):
            code: int = arguments.run(arguments)
    except MedgraftError as error:
        print(f"{name}: {one_line(redacted_text(str(error)))}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, RuntimeError) as error:
        if together > 1 and _is_of_another(error):
            print(f"{name}: another process of this run ended; what it printed says why.", file=sys.stderr)
            return 2
        if (reason := lack(error)) is None:
            raise
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        print(f"{name}: {one_line(redacted_text(where + reason))}. What was finished is kept.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if first:
            print("\nmedgraft: stopped. Finished work is saved; run the same command again to continue.", file=sys.stderr)
        return 130
    return code


def _is_of_another(error: Exception) -> bool:
    """Whether an error says that another process, with which this one works, is gone."""
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__) or "onnection closed by peer" in str(error)


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
        add_command(commands, command, run=command.run)
    return parser
