"""`medgraft adapter extract`: any adapter in low rank, and what that costs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medgraft.cli.options import ADAPTER, add_json, add_set

NAME = "extract"
SUMMARY = "make a small LoRA of any adapter, even of full fine-tuning, and measure what it costs"
EXAMPLE = "medgraft adapter extract my-adapter --out small --keep 0.9 --dtype bf16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--backbone", metavar="B", help="NAME:SOURCE, the location of the base")
    parser.add_argument("--rank", type=_rank, metavar="R", help="rank of every matrix, or auto: what --keep needs (default)")
    parser.add_argument(
        "--keep", type=float, default=0.99, metavar="K", help="share of each change's squared values to keep (default: 0.99)"
    )
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "int8"), help="of the file; PEFT cannot read int8")
    parser.add_argument("--linear-only", action="store_true", help="drop changes outside linear layers, for plain PEFT")
    parser.add_argument("--data", metavar="NAME[:PATH]", help="measure on its validation split (default: the training's data)")
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N images; 0: do not measure")
    add_set(parser, "data.K=V, an option of the data set; may be repeated")
    add_json(parser)


def _rank(text: str) -> int | None:
    return None if text == "auto" else int(text)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from dataclasses import asdict

    from medgraft import conversion
    from medgraft.config import data_config
    from medgraft.plugin import PluginManager

    data = data_config(arguments.data, arguments.overrides, None) if arguments.data else None
    options = conversion.ExtractOptions(
        arguments.rank, arguments.keep, arguments.dtype, arguments.linear_only, data, arguments.max_images
    )
    found = conversion.extract_adapter(
        arguments.adapter, arguments.out, plugins=PluginManager.from_environment(), backbone=arguments.backbone, options=options
    )
    if arguments.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    print(f"{found.folder}: {found.bytes / 2**20:.2f} MiB, before {found.bytes_before / 2**20:.2f} MiB")
    print(f"{found.low_rank} matrices of rank {found.ranks[0]} to {found.ranks[1]}, {found.whole} tensors whole")
    if found.dropped:
        print(f"dropped: {found.dropped} tensors outside linear layers, {found.dropped_energy:.1%} of the change's energy")
    if found.before and found.after:
        print(f"on {found.images} validation images:")
        print(f"loss  {found.before.loss:.4f} -> {found.after.loss:.4f}")
        print(f"cider {found.before.cider:.4f} -> {found.after.cider:.4f}")
    return 0
