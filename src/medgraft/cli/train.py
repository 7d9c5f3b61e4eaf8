"""`medgraft train`: one run, with an adapter package as its result."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from medgraft.cli.options import add_json, add_set
from medgraft.quiet import quiet_libraries

NAME = "train"
SUMMARY = "train one strategy, package the adapter and evaluate it"
EXAMPLE = "medgraft train --backbone blip-nano --strategy lora --data phantoms --out my-adapter --set strategy.r=8"
_SHORT = {
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("--backbone", required=True, metavar="B", help="NAME, NAME:HUB_ID or NAME:FOLDER")
    parser.add_argument("--strategy", required=True, metavar="S", help="a preset, or peft:<METHOD>")
    parser.add_argument("--data", required=True, metavar="NAME[:PATH]", help="such as phantoms or roco:/data/roco")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the run's folder; its adapter will be in DIR/adapter"
    )
    add_set(parser, "strategy.K=V, train.K=V, data.K=V or generation.K=V; may be repeated")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the adapter in --out")
    parser.add_argument("--epochs", type=float, metavar="N")
    parser.add_argument("--max-steps", type=int, metavar="N", help="optimiser steps; overrides --epochs")
    parser.add_argument("--batch-size", type=int, metavar="N")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="peak rate (default: the strategy's own)")
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N images of each split")
    parser.add_argument("--no-eval", action="store_true", help="do not caption and score the test split afterwards")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.config import CONTROLS, run_config

    given = [f"train.{key}={value}" for short, key in _SHORT.items() if (value := getattr(arguments, short)) is not None]
    config = run_config(
        backbone=arguments.backbone, strategy=arguments.strategy, data=arguments.data, seed=arguments.seed,
        max_images=arguments.max_images, overrides=[*arguments.overrides, *given],
    )  # fmt: skip
    from medgraft.adapter import IN_RUN
    from medgraft.benchmark import execute
    from medgraft.hardware import is_main_process
    from medgraft.plugin import PluginManager

    quiet_libraries()
    record = execute(
        config, arguments.out, plugins=PluginManager.from_environment(), resume=arguments.resume,
        overwrite=arguments.overwrite, evaluate=not arguments.no_eval,
    ).record  # fmt: skip
    if not is_main_process():
        return 0
    if arguments.json:
        print(record.model_dump_json(indent=1))
        return 0
    if record.steps:
        print(
            f"{record.steps} steps in {record.training_seconds:.1f} s; "
            f"adapter of {record.adapter_bytes:,} bytes in {arguments.out / IN_RUN}"
        )
    if record.metrics:
        scores = "  ".join(f"{name}\u00a0{value:.4f}" for name, value in record.metrics.items() if not name.endswith(CONTROLS))
        print(textwrap.fill(scores, 78).replace("\u00a0", " "))
    return 0
