"""`medgraft explain`: attention maps for each word of a caption."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgraft.cli.images import image_files, tell_of_failed
from medgraft.cli.options import add_generation, add_json, add_model
from medgraft.errors import BackboneError, DataError

if TYPE_CHECKING:
    from medgraft.saliency import Explanation, MapOptions

NAME = "explain"
SUMMARY = "show a model's attention to the image for each word"
EXAMPLE = "medgraft explain scan.jpg --adapter my-adapter --out explanation.html"
_ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file, or a folder for all that are below it")
    add_model(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write an HTML page with the maps")
    parser.add_argument("--overlays", type=Path, metavar="DIR", help="write an image with the map for each word")
    parser.add_argument("--caption", metavar="TEXT", help="explain this caption instead of the model's own")
    parser.add_argument(
        "--method", choices=("attention", "rollout", "gradient", _ALL), default="attention", metavar="M",
        help=f"attention, rollout (through the vision tower), gradient (weighted by it) or {_ALL} (default: attention)",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, nargs="+", metavar="N", help="only these layers, from 0 (default: their mean)")
    parser.add_argument("--heads", type=int, nargs="+", metavar="N", help="only these heads, from 0 (default: their mean)")
    add_generation(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft import api
    from medgraft.adapter.base_name import public_base
    from medgraft.cli.models import generation, load_model
    from medgraft.saliency.maps import attention_layout_of

    adapter, backbone = load_model(arguments)
    model = adapter.backbone if adapter else backbone
    assert model is not None  # the parser requires one of the two
    attention_layout_of(model, "attention")  # raises for a model without attention, before captions are generated
    settings = generation(arguments, adapter)
    explained: dict[str, list[tuple[str, Explanation]]] = {}
    failed: list[str] = []
    images = image_files(arguments.images)
    for image, shown in images.items():
        text: str | None = arguments.caption
        several: list[tuple[str, Explanation]] = []
        try:
            for name, choice in _choices(arguments, model):
                made = api.explain(image, adapter=adapter, backbone=backbone, caption=text, generation=settings, maps=choice)
                text = made.caption  # generate once, explain with every method
                several.append((name, made))
        except (BackboneError, DataError) as error:
            failed.append(str(error))
            continue
        explained[shown] = several
    tell_of_failed(failed, len(images))
    if arguments.json:
        used = None if arguments.caption else settings.model_dump()
        print(json.dumps({name: [_numbers(e, used) for _, e in several] for name, several in explained.items()}, indent=2))
    else:
        print("\n\n".join(_text(name, several[0][1]) for name, several in explained.items()))
    written = _write(
        arguments, explained, f"Adapter {adapter.name}" if adapter else f"Backbone {public_base(arguments.backbone)}"
    )
    if not arguments.json:
        print(f"\n{written}")
    return 1 if failed else 0


def _choices(arguments: argparse.Namespace, model: Any) -> list[tuple[str, MapOptions]]:
    """(name, map options) of every explanation to make of each image."""
    from medgraft.errors import MedgraftError
    from medgraft.saliency import METHODS, MapOptions, layer_count
    from medgraft.saliency.maps import attention_layout_of

    layers, heads = arguments.layers, arguments.heads
    if arguments.method != _ALL:
        return [(arguments.method, MapOptions(arguments.method, layers, heads))]
    found: list[tuple[str, MapOptions]] = []
    for method in METHODS:
        try:
            attention_layout_of(model, method)
        except MedgraftError:
            continue
        found.append((method, MapOptions(method) if method == "gradient" else MapOptions(method, layers, heads)))
    if layers is None:
        found += [(f"attention, layer {i}", MapOptions(layers=[i], heads=heads)) for i in range(layer_count(model))]
    return found


def _write(arguments: argparse.Namespace, explained: dict[str, list[tuple[str, Explanation]]], model: str) -> str:
    """Write the requested files; returns a line that names them, or the options that write some."""
    from medgraft.report import explanation_page

    done = []
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(explanation_page(explained, model), encoding="utf-8")
        done.append(f"Page with the maps: {arguments.out}")
    if arguments.overlays:
        for number, (name, ((_, explanation), *_)) in enumerate(explained.items()):
            alike = sum(Path(other).stem == Path(name).stem for other in list(explained)[:number])
            folder = arguments.overlays / (Path(name).stem + (f"-{alike + 1}" if alike else ""))
            folder.mkdir(parents=True, exist_ok=True)
            for i, word in enumerate(explanation.maps.words):
                explanation.overlay(i).save(folder / f"{i:02d}-{word.text.replace('/', '-')}.png")
        done.append(f"Images, one for each word: {arguments.overlays}")
    return "\n".join(done) or "--out page.html makes a page of the maps, --overlays DIR an image for each word."


def _peak(explanation: Explanation, word: int) -> tuple[int, int]:
    """The pixel (x, y) where a word's map is highest."""
    values = explanation.heat(word)
    y, x = divmod(int(values.argmax()), values.shape[1])
    return x, y


def _text(name: str, explanation: Explanation) -> str:
    words = explanation.maps.words
    width = max([len("word"), *(len(word.text) for word in words)])
    lines = [f"{name}: {explanation.caption}", explanation.maps.label, "", f"{'word':<{width}}  highest at (x, y)"]
    for i, word in enumerate(words):
        x, y = _peak(explanation, i)
        lines.append(f"{word.text:<{width}}  ({x}, {y})")
    return "\n".join(lines)


def _numbers(explanation: Explanation, generation: dict[str, Any] | None) -> dict[str, Any]:
    """For --json; `generation` has the settings that the caption was generated with, None if it was given."""
    words = [
        {
            "text": word.text,
            "start": word.start,
            "end": word.end,
            "map": word.grid.tolist(),
            "peak": _peak(explanation, i),
            "probability": word.probability,
        }
        for i, word in enumerate(explanation.maps.words)
    ]
    caption = {"caption": explanation.caption, "generation": generation}
    return caption | {"label": explanation.maps.label, "view": explanation.view, "words": words}
