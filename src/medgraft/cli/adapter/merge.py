"""`medgraft adapter merge`: an adapter and its base as one ordinary transformers folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medgraft.cli.options import ADAPTER, add_json, add_set

NAME = "merge"
SUMMARY = "merge an adapter into its base: a folder that plain transformers loads, compared with the adapter"
EXAMPLE = "medgraft adapter merge my-adapter --out merged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--backbone", metavar="B", help="NAME:SOURCE, the location of the base")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="dtype of the merged weights")
    parser.add_argument("--format", default="transformers", choices=("transformers", "onnx", "gguf"))
    parser.add_argument("--data", metavar="NAME[:PATH]", help="compare on images of its test split (default: phantoms)")
    parser.add_argument("--images", type=int, default=16, metavar="N", help="number of images to compare on (default: 16)")
    add_set(parser, "data.K=V, an option of the data set; may be repeated")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from dataclasses import asdict

    from medgraft import conversion
    from medgraft.config import data_config
    from medgraft.plugin import PluginManager

    data = data_config(arguments.data, arguments.overrides, None) if arguments.data else None
    options = conversion.MergeOptions(arguments.dtype, data, arguments.images, arguments.format)
    merged = conversion.merge_adapter(
        arguments.adapter, arguments.out, plugins=PluginManager.from_environment(), backbone=arguments.backbone, options=options
    )
    if arguments.json:
        print(json.dumps(asdict(merged), indent=2))
        return 0
    print(f"{merged.folder}: {merged.model_class}, {merged.dtype}, {merged.bytes / 2**20:.1f} MiB")
    print(merged)
    if merged.plain_captions is not None:
        print(f"The model's own generate, without medgraft, gives {merged.plain_captions} of {merged.images} captions as well.")
    return 0
