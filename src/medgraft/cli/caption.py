"""`medgraft caption`: captions of image files."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping

from medgraft.cli.options import add_generation, add_json, add_model
from medgraft.errors import ConfigError

NAME = "caption"
SUMMARY = "caption image files with an adapter, several side by side, or a bare backbone"
EXAMPLE = "medgraft caption scan.jpg --adapter my-adapter"
_WIDTH, _LABEL = 80, 24  # characters
_BASE = "base model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    add_model(parser, several=True)
    parser.add_argument("--with-base", action="store_true", help="also the captions of the adapters' base model")
    add_generation(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    adapters = arguments.adapter or []
    if len(adapters) > 1 or arguments.with_base:
        return _side_by_side(arguments)
    from medgraft import api
    from medgraft.cli.models import generation, load_model

    arguments.adapter = adapters[0] if adapters else None
    adapter, backbone = load_model(arguments)
    captions = api.caption(arguments.images, adapter=adapter, backbone=backbone, generation=generation(arguments, adapter))
    if arguments.json:
        print(json.dumps(dict(zip(arguments.images, captions, strict=True)), indent=2, ensure_ascii=False))
    else:
        for image, text in zip(arguments.images, captions, strict=True):
            print(f"{image}: {text}" if len(captions) > 1 else text)
    return 0


def _side_by_side(arguments: argparse.Namespace) -> int:
    """Captions of several adapters, each with its own generation settings, under each image's name."""
    from medgraft import api
    from medgraft.adapter_set import load_adapters
    from medgraft.cli.models import generation
    from medgraft.quiet import quiet_libraries

    names = [str(adapter) for adapter in arguments.adapter or []]
    if not names:
        raise ConfigError("--with-base shows the base of adapters; name one with --adapter DIR.")
    for name in names:
        if [*names, _BASE].count(name) > 1:
            raise ConfigError(f"--adapter {name}: two models would have this name. Name each adapter once, or write ./{name}.")
    quiet_libraries()
    several = load_adapters(
        {name: name for name in names}, backbone=arguments.backbone, allow_base_mismatch=arguments.allow_base_mismatch,
        quantization=arguments.quantization, dtype=arguments.dtype or "auto", prompt=arguments.prompt,
    )  # fmt: skip
    captions: dict[str, dict[str, str]] = {image: {} for image in arguments.images}
    for name in (*several.names, *((None,) if arguments.with_base else ())):
        adapter = several.use(name)
        texts = api.caption(arguments.images, adapter=adapter, generation=generation(arguments, adapter))
        for image, text in zip(arguments.images, texts, strict=True):
            captions[image][_BASE if name is None else name] = text
    if arguments.json:
        print(json.dumps(captions, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(f"{image}\n{_rows(by_adapter)}" for image, by_adapter in captions.items()))
    return 0


def _rows(captions: Mapping[str, str]) -> str:
    """A column of names and one of captions, 80 characters wide together; a long name has a line of its own."""
    column = min(max(map(len, captions)), _LABEL) + 2
    lines = []
    for name, text in captions.items():
        wrapped = textwrap.wrap(text, _WIDTH - 2 - column) or [""]
        first = [name] if len(name) > _LABEL else [f"{name:<{column}}{wrapped.pop(0)}".rstrip()]
        lines += [f"  {line}" for line in (*first, *(" " * column + rest for rest in wrapped))]
    return "\n".join(lines)
