"""`medgraft train`: one run, with an adapter package as its result."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medgraft.cli.options import add_dtype, add_json, add_metrics, add_set, with_metrics
from medgraft.errors import ConfigError, Stopped
from medgraft.quiet import quiet_libraries

if TYPE_CHECKING:
    from medgraft.config import RunConfig

NAME = "train"
SUMMARY = "train one strategy, package the adapter and evaluate it"
EXAMPLE = "medgraft train --backbone blip-nano --strategy lora --data phantoms --out my-adapter --set strategy.r=8"
_SHORT = {
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
    "dtype": "dtype",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("--backbone", metavar="B", help="NAME, NAME:HUB_ID or NAME:FOLDER; with --from, its base's location")
    parser.add_argument("--strategy", metavar="S", help="a preset, or peft:<METHOD>")
    parser.add_argument(
        "--from", metavar="ADAPTER", dest="start_from",
        help="start with the weights of this adapter, whose backbone and strategy these are",
    )  # fmt: skip
    parser.add_argument("--data", metavar="NAME[:PATH]", help="such as phantoms or roco:/data/roco")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the run's folder; its adapter will be in DIR/adapter"
    )
    add_set(parser, "strategy.K=V, train.K=V, data.K=V or generation.K=V; may be repeated")
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0")
    parser.add_argument(
        "--resume", action="store_true",
        help="go on from the last checkpoint in --out, with the run's own settings where none are named; "
        "a finished run goes on to more --epochs",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace adapter and checkpoints in --out")
    parser.add_argument("--epochs", type=float, metavar="N")
    parser.add_argument("--max-steps", type=int, metavar="N", help="optimiser steps; overrides --epochs")
    parser.add_argument("--batch-size", type=int, metavar="N")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="peak rate (default: the strategy's or --from's)")
    add_dtype(parser, "default: auto, the fastest that this machine has")
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N images of each split")
    add_metrics(parser, "the usual ones")
    parser.add_argument("--no-eval", action="store_true", help="do not caption and score the test split afterwards")
    add_json(parser)


def _config(arguments: argparse.Namespace) -> RunConfig:
    """The run's settings, from the words of the command line or from the finished run that is resumed."""
    from medgraft.config import changed_run, run_config

    if arguments.start_from is not None:
        from medgraft.api import run_config
    given = [f"train.{key}={value}" for short, key in _SHORT.items() if (value := getattr(arguments, short)) is not None]
    overrides = [*arguments.overrides, *given]
    named = (arguments.backbone, arguments.strategy, arguments.start_from, arguments.data)
    if arguments.resume and not any(named):
        from medgraft.benchmark import config_in

        lengthened = arguments.epochs is not None and arguments.max_steps is None
        return changed_run(
            config_in(arguments.out), seed=arguments.seed, max_images=arguments.max_images,
            overrides=["train.max_steps=-1", *overrides] if lengthened else overrides,
        )  # fmt: skip
    if arguments.data is None:
        raise ConfigError("Name the data to train on, with --data NAME[:PATH].")
    return run_config(
        backbone=arguments.backbone, strategy=arguments.strategy, start_from=arguments.start_from, data=arguments.data,
        seed=arguments.seed or 0, max_images=arguments.max_images, overrides=overrides,
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    config = _config(arguments)
    config = config.model_copy(update={"metrics": with_metrics(config.metrics, arguments.metrics_added)})
    from medgraft.adapter import IN_RUN
    from medgraft.benchmark import execute, write_baselines
    from medgraft.cli.scores import print_evaluation
    from medgraft.hardware import is_main_process
    from medgraft.plugin import KnownScores, PluginManager
    from medgraft.training import sigterm_raises

    quiet_libraries()
    before, plugins = _checkpoints(arguments.out), PluginManager.from_environment()
    try:
        with sigterm_raises():
            result = execute(
                config, arguments.out, plugins=plugins, resume=arguments.resume, overwrite=arguments.overwrite,
                evaluate=not arguments.no_eval,
            )  # fmt: skip
    except KeyboardInterrupt as error:
        if is_main_process():
            resumes = arguments.resume or _checkpoints(arguments.out) - before
            print(f"\nmedgraft: stopped. Go on with: {_command(arguments.words, resumes=bool(resumes))}", file=sys.stderr)
        return 128 + (error.signal if isinstance(error, Stopped) else signal.SIGINT)
    if not is_main_process():
        return 0
    record, baselines = result.record, write_baselines(result, arguments.out, plugins=plugins)
    if arguments.json:
        print(record.model_dump_json(indent=1))
        return 0
    if record.steps:
        print(
            f"{record.steps} steps in {record.training_seconds:.1f} s; "
            f"adapter of {record.adapter_bytes:,} bytes in {arguments.out / IN_RUN}"
        )
    if record.skipped_steps:
        print(f"{record.skipped_steps} of {record.steps} steps changed nothing, as their gradients overflowed in fp16")
    if result.evaluation:
        print_evaluation(replace(result.evaluation, baselines=baselines), KnownScores(plugins), details=False)
        print(f"All scores: medgraft report {arguments.out} --format html (or csv)")
    return 0


def _checkpoints(out: Path) -> set[tuple[Path, int]]:
    """The checkpoints in a run's folder, and when they were written."""
    from medgraft.benchmark.run_folder import CHECKPOINTS

    return {(path, path.stat().st_mtime_ns) for path in (out / CHECKPOINTS).glob("checkpoint-*")}


def _command(words: list[str], *, resumes: bool) -> str:
    """The command line that goes on with what `words` began."""
    from medgraft.hardware import process_count

    spec = sys.modules["__main__"].__spec__
    if process_count() > 1:  # by a launcher whose command is not known here
        return "the same command" + (", with --resume" if resumes else "")
    program = [sys.executable, "-m", "medgraft"] if spec and spec.name == "medgraft.__main__" else ["medgraft"]
    return shlex.join([*program, *words, *(["--resume"] if resumes and "--resume" not in words else [])])
