"""`medgraft caption`: captions of image files."""

from __future__ import annotations

import argparse
import json

from medgraft.cli.options import add_generation, add_json, add_model

NAME = "caption"
SUMMARY = "caption image files with an adapter or a bare backbone"
EXAMPLE = "medgraft caption scan.jpg --adapter my-adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    add_model(parser)
    add_generation(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft import api
    from medgraft.cli.models import generation, load_model

    adapter, backbone = load_model(arguments)
    captions = api.caption(arguments.images, adapter=adapter, backbone=backbone, generation=generation(arguments, adapter))
    if arguments.json:
        print(json.dumps(dict(zip(arguments.images, captions, strict=True)), indent=2, ensure_ascii=False))
    else:
        for image, text in zip(arguments.images, captions, strict=True):
            print(f"{image}: {text}" if len(captions) > 1 else text)
    return 0
