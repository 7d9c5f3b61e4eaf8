"""`medgraft`: parses the command line and runs a command; a user's mistake becomes one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
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
    demo,
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
from medgraft.cli.options import add_command, shell_lines
from medgraft.disk import lack
from medgraft.errors import ConfigError, MedgraftError
from medgraft.escaping import PrintableStream, ReaderGoneError, one_line
from medgraft.progress import log_to_stderr
from medgraft.quiet import quiet_libraries
from medgraft.redaction import redacted_text

_COMMANDS = (
    list_names, plugins, phantoms, tiny_models, data, train, adapter, evaluate, caption, explain, demo, score, export, bench,
    report, compare, features, new_plugin, check_plugin,
)  # fmt: skip
_IN_PROCESSES = (train.run, evaluate.run, caption.run)  # what torchrun may start

_SUMMARY = "Adapt vision-language models to medical images,\nand compare the cost and quality of ways to train."
_FIRST = f"""{_SUMMARY}

Try, without a download:
  medgraft phantoms --count 80 --out my-data
  medgraft train --backbone blip-nano --strategy lora --epochs 1 \\
      --data phantoms:my-data --out my-adapter
  medgraft caption my-data/test/radiology/images --adapter my-adapter

`medgraft --help` lists all commands, `medgraft COMMAND --help` explains one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 on success, 2 after a user's mistake, with one line on stderr."""
    stdout = sys.stdout
    try:
        with redirect_stdout(cast(TextIO, PrintableStream(stdout))):
            try:
                return _main(sys.argv[1:] if argv is None else list(argv))
            finally:
                sys.stdout.flush()
    except ReaderGoneError:
        with Path(os.devnull).open("w") as nothing:  # where goes what the stream still holds when Python ends
            os.dup2(nothing.fileno(), stdout.fileno())
        return 128 + 13  # as of a program that SIGPIPE ended


def _main(words: list[str]) -> int:
    if not words:
        print(_FIRST)
        return 0
    arguments = _parser().parse_args(words)
    arguments.words = words
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
            nullcontext() if first else Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            nullcontext() if nowhere is None else redirect_stdout(nowhere),
            log_to_stderr(level if first else logging.ERROR),
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
        description=_SUMMARY,
        epilog="example:\n  "
        + shell_lines("medgraft train --backbone blip-nano --strategy lora --data phantoms --out my-adapter"),
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=18),
    )
    parser.add_argument("--version", action="version", version=f"medgraft {medgraft.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        add_command(commands, command, run=command.run)
    return parser
