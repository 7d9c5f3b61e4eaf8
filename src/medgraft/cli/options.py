"""Options that several commands share."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any

ADAPTER = "folder of `medgraft train` or PEFT, or USER/REPO[@REVISION] of the hub"
_WIDTH = 78  # of a terminal, less the two that argparse leaves free


def add_json(parser: argparse.ArgumentParser) -> None:
    """Machine-readable output."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_command(commands: Any, command: Any, **defaults: Any) -> None:
    """Add the parser of `command`, a module in the form that medgraft.cli describes, to sub-parsers, with its defaults."""
    parser = commands.add_parser(
        command.NAME,
        help=command.SUMMARY,
        description=textwrap.fill(command.SUMMARY[0].upper() + command.SUMMARY[1:] + ".", _WIDTH),
        epilog="example:\n  " + shell_lines(command.EXAMPLE),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    _add_verbosity(parser, action="run" not in defaults)
    parser.set_defaults(**defaults)
    parser.usage = _usage(parser)


def shell_lines(command: str) -> str:
    """A command as lines of a shell that fit a terminal, indented by two but for the first; an option stays by its value."""
    whole = " ".join(option.replace(" ", "\0") for option in re.split(" (?=--)", command))
    lines = textwrap.wrap(whole, _WIDTH - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return " \\\n  ".join(lines).replace("\0", " ")


def _usage(parser: argparse.ArgumentParser) -> str:
    """What a command needs; the help lists its options below, with their values."""
    needed = [action for action in parser._actions if action.required or not action.option_strings]
    formatter = argparse.HelpFormatter(f"{parser.prog} [options]", width=_WIDTH)
    formatter.add_usage(None, needed, [], prefix="")
    return formatter.format_help().strip()


def _add_verbosity(parser: argparse.ArgumentParser, *, action: bool) -> None:
    """Add -v and -q. `action`: the parser is of a command's action, whose defaults must not replace what is before it."""
    default = argparse.SUPPRESS if action else False
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("-v", "--verbose", action="store_true", default=default, help="also log details for debugging")
    talk.add_argument("-q", "--quiet", action="store_true", default=default, help="no progress, only warnings and the result")


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --set, which changes any setting by name."""
    parser.add_argument("--set", action="append", default=[], metavar="K=V", dest="overrides", help=what)


def add_metrics(parser: argparse.ArgumentParser, besides: str) -> None:
    """Add --metric, which may be repeated."""
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME", dest="metrics_added",
        help=f"also compute this metric, besides {besides}; may be repeated; see `medgraft list metrics`",
    )  # fmt: skip


def add_dtype(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --dtype, without a default of its own."""
    kinds = ("auto", "bf16", "fp16", "fp32")
    parser.add_argument("--dtype", choices=kinds, metavar="T", help=f"{', '.join(kinds)}: what is computed in ({default})")


def add_device_map(parser: argparse.ArgumentParser) -> None:
    """Add --device-map; `model_settings` reads it."""
    parser.add_argument(
        "--device-map", metavar="MAP",
        help="spread over GPUs, CPU, disk: auto, balanced, balanced_low_0, sequential, JSON",
    )  # fmt: skip


def model_settings(arguments: argparse.Namespace) -> list[str]:
    """What --device-map stands for, in the form of --set."""
    return [f"model.device_map={arguments.device_map}"] if arguments.device_map else []


def add_model(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add --adapter, --backbone and the options of loading; `several` makes --adapter a list."""
    parser.add_argument(
        "--adapter", metavar="ADAPTER", action="append" if several else "store",
        help=ADAPTER + ("; repeatable" if several else ""),
    )  # fmt: skip
    parser.add_argument("--backbone", metavar="B", help="NAME or NAME:SOURCE; with --adapter, its base's location")
    parser.add_argument(
        "--allow-base-mismatch", action="store_true",
        help="use the adapter on a base with other weights than it was trained on, and say what differs",
    )  # fmt: skip
    parser.add_argument(
        "--quantization", choices=("none", "int8", "nf4", "fp4"), default="none", metavar="Q",
        help="int8, nf4, fp4: hold the base so; of a PEFT adapter or a bare backbone",
    )  # fmt: skip
    add_dtype(parser, "default: auto, the adapter's own or the fastest here")
    add_device_map(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="default: the adapter's own, else the backbone's")


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the options of `add_model` for several adapters, with the base."""
    add_model(parser, several=True)
    parser.add_argument("--with-base", action="store_true", help="also the captions of the adapters' base model")


def add_generation(parser: argparse.ArgumentParser, *, sets: bool = True) -> None:
    """Add the options of caption generation; `sets`: with --set, which the command does not have otherwise."""
    if sets:
        add_set(parser, "generation.K=V, model.K=V, or image.size=N for a bare backbone; may be repeated")
    parser.add_argument("--num-beams", type=int, metavar="N", help="beams (default: greedy, or the adapter's)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="maximum length of a caption in tokens")
