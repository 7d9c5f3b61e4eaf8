"""`medgraft adapter inspect`: what an adapter is and how it was made."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medgraft.cli.options import ADAPTER, add_json
from medgraft.escaping import one_line

if TYPE_CHECKING:
    from medgraft.adapter.inspection import AdapterInspection

NAME = "inspect"
SUMMARY = "show what an adapter is: its base, strategy, sizes, ranks, training and scores"
EXAMPLE = "medgraft adapter inspect my-adapter"
_LABEL = 10  # characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.adapter import read_contents
    from medgraft.adapter.inspection import inspect_adapter

    found = inspect_adapter(read_contents(arguments.adapter))
    if arguments.json:
        print(found.model_dump_json(indent=1))
    else:
        print("\n".join(_line(label, one_line(text)) for label, text in _rows(found)))
    return 0


def _line(label: str, text: str) -> str:
    """A label and its text, or a text without a label, wrapped to the width of a terminal."""
    head, rest = (f"{label:<{_LABEL}}", " " * _LABEL) if label else ("  ", "    ")
    return textwrap.fill(text, 80, initial_indent=head, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)


def _rows(found: AdapterInspection) -> Iterator[tuple[str, str]]:
    """Lines of label and text; those without a label are listed below the line before."""
    settings, manifest = found.settings or {}, found.manifest
    yield "adapter", f"{found.folder}, {'a medgraft package' if manifest else 'a plain PEFT adapter, without digests'}"
    if manifest is None:
        yield "base", f"{settings.get('base_model_name_or_path') or 'not named'}"
    else:
        yield "base", f"{manifest['backbone']}, weights {manifest['base_fingerprint'][:12]}"
        yield "strategy", _strategy(manifest)
    if found.settings is not None:
        ranks = ", ".join(f"{rank} on {count} layers" for rank, count in found.ranks.items())
        alpha = f", alpha {settings['lora_alpha']}" if ranks and "lora_alpha" in settings else ""
        yield "method", f"{settings['peft_type']}{f', rank {ranks}' if ranks else ''}{alpha}"
    if manifest is not None:
        yield from _made(manifest)
    size = sum(group.bytes for group in found.groups)
    yield "weights", f"{found.parameters:,} parameters, {size / 1e6:,.2f} MB"
    for group in found.groups:
        yield "", f"{group.module}: {group.parameters:,} in {group.tensors} tensors, {', '.join(group.dtypes)}"
    for name, entry in (found.files or {}).items():
        yield "file", f"{name}, {entry.bytes:,} bytes, SHA-256 {entry.sha256[:12]}"


def _strategy(manifest: dict[str, Any]) -> str:
    settings = manifest["strategy_settings"]
    plans = ", ".join(f"{part} {settings[part]['mode']}" for part in ("vision", "bridge", "text"))
    quantised = f"; base in {settings['quantization']}" if settings["quantization"] != "none" else ""
    return f"{manifest['strategy']}: {plans}{quantised}"


def _made(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from medgraft.adapter.manifest import Ancestor, Conversion
    from medgraft.plugin import KnownScores, PluginManager

    training, evaluation = manifest["training"], manifest["evaluation"]
    known = {key: training[key] for key in ("steps", "images", "learning_rate", "final_loss", "seconds") if key in training}
    about = ", ".join(f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in known.items())
    if about:
        yield "training", f"{manifest['data']['name']}: {about}, seed {manifest['seed']}"
    if manifest["conversion"]:
        yield "made by", str(Conversion.model_validate(manifest["conversion"]))
    for ancestor in manifest["lineage"]:
        yield "went on", f"from {Ancestor.model_validate(ancestor)}"
    if manifest["metrics"]:
        where = f" ({evaluation.get('images')} images, split {evaluation.get('split')})"
        shown = KnownScores(PluginManager.from_environment()).shown(manifest["metrics"])
        yield "scores", ", ".join(f"{name} {manifest['metrics'][name]:.4f}" for name in shown) + where
    yield "prompt", repr(manifest["prompt"])
    if manifest["image_size"]:
        yield "image size", f"{manifest['image_size']} pixels a side"
    yield "versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items() if version)
