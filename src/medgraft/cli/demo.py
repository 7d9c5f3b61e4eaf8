"""`medgraft demo`: a local page to try models on images."""

from __future__ import annotations

import argparse

from medgraft.cli.options import add_generation, add_models

NAME = "demo"
SUMMARY = "open a local page to try adapters on images, with word maps"
EXAMPLE = "medgraft demo --adapter my-adapter --adapter other-adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    add_models(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="port to serve at, 0 for a free one (default: 7860)")
    add_generation(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.demo.server import Address, require_gradio

    require_gradio()
    with Address(arguments.host, arguments.port) as address:  # before models are loaded, which takes time
        from medgraft.cli.models import captioners
        from medgraft.demo import local_models

        alone = arguments.adapter[0] if arguments.adapter else arguments.backbone
        models = local_models({name or str(alone): found for name, found in captioners(arguments).items()})
        address.serve(models)
    return 0
