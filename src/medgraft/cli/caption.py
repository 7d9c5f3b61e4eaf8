"""`medgraft caption`: captions of image files."""

from __future__ import annotations

import argparse
import json
import logging
import textwrap
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgraft.cli.images import image_files, tell_of_failed
from medgraft.cli.options import add_generation, add_json, add_models
from medgraft.errors import ConfigError

if TYPE_CHECKING:
    from medgraft.captioning import CaptionedBatch
    from medgraft.config import GenerationConfig
    from medgraft.inference import Captioner
    from medgraft.scoring import PredictionsFile

NAME = "caption"
SUMMARY = "caption image files with one adapter or several side by side"
EXAMPLE = "medgraft caption scan.jpg --adapter my-adapter"
_WIDTH, _LABEL = 80, 24  # characters
_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file, or a folder for all that are below it")
    add_models(parser)
    parser.add_argument("--together", action="store_true", help="the images are of one study, which gets one caption")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write {image: caption} there as captions are made")
    add_generation(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.cli.models import captioners
    from medgraft.hardware import is_main_process
    from medgraft.progress import progress_bar, progress_bars
    from medgraft.scoring import PredictionsFile

    files = image_files(arguments.images)
    images = {tuple(files): " + ".join(files.values())} if arguments.together else files
    main = is_main_process()
    if main and arguments.out and arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already. Remove it, or name another file for the captions.")
    models = [_Model(name, captioner, settings) for name, (captioner, settings) in captioners(arguments).items()]
    streams = [model.captioner.batches(list(images), model.generation) for model in models]
    made, stopped, quietly = _Made(images), False, bool(arguments.json or arguments.out)
    with (
        PredictionsFile(arguments.out) if main and arguments.out else nullcontext() as file,
        nullcontext() if quietly else progress_bars(False),
        progress_bar(total=len(images), desc="captioning", unit="image", least=2) as bar,
    ):
        try:
            for batches in zip(*streams, strict=True):
                made.add(models, batches, file, shown=not quietly)
                bar.update(len(batches[0].images))
        except KeyboardInterrupt:
            stopped = True
    if stopped:
        _logger.warning("Stopped after %d of %d images.", len(made.captions) + len(made.failed), len(images))
    else:
        tell_of_failed(list(made.failed.values()), len(images))
    warnings = [line for model in models for line in model.warnings()]
    for line in warnings:
        _logger.warning("%s", line)
    if arguments.json:
        settings = {model.name: model.generation.model_dump() for model in models}
        generation = settings if models[0].name else models[0].generation.model_dump()
        content = {"captions": made.captions, "failed": made.failed, "generation": generation, "warnings": warnings}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif arguments.out:
        print(f"{len(made.captions)} captions: {arguments.out}")
    return 130 if stopped else 1 if made.failed else 0


@dataclass
class _Model:
    """A model with its settings, and what it said so far; `name` is empty if it is the only one."""

    name: str
    captioner: Captioner
    generation: GenerationConfig
    first: list[str] = field(default_factory=list)
    cut_off: int | None = 0

    def warnings(self) -> list[str]:
        """Lines about captions that are mostly cut off, empty or equal."""
        from medgraft.text_statistics import GenerationStatistics, caption_warnings

        limit = self.captioner.token_limit(self.generation)
        counted = GenerationStatistics(captions=len(self.first), cut_off=self.cut_off, max_new_tokens=limit)
        lines = [*(counted.warnings() if counted.mostly_cut_off else ()), *caption_warnings(self.first)]
        return [f"{self.name}: {line}" if self.name else line for line in lines]


@dataclass
class _Made:
    """What was made of `images` or studies, by the names that they were given with, in the form of --json and --out."""

    images: Mapping[Any, str]
    captions: dict[str, str | list[str] | dict[str, str | list[str]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(
        self, models: list[_Model], batches: tuple[CaptionedBatch, ...], file: PredictionsFile | None, *, shown: bool
    ) -> None:
        """Take over one batch of every model, print it if it is to be `shown`, and write it to `file`."""
        for row in zip(*(batch.images for batch in batches), strict=True):
            name = self.images[row[0].image]
            if problem := next((each.problem for each in row if each.problem), None):
                self.failed[name] = problem
                continue
            by_model: dict[str, str | list[str]] = {}
            for model, each in zip(models, row, strict=True):
                model.first.append(each.captions[0])
                by_model[model.name] = each.captions[0] if len(each.captions) == 1 else list(each.captions)
            made: str | list[str] | dict[str, str | list[str]] = by_model if models[0].name else by_model[""]
            if shown:
                print(self._text(name, made), flush=True)
            if file is not None:
                file.add(name, made)
            self.captions[name] = made
        for model, batch in zip(models, batches, strict=True):
            model.cut_off = None if model.cut_off is None or batch.cut_off is None else model.cut_off + batch.cut_off

    def _text(self, image: str, captions: str | list[str] | dict[str, str | list[str]]) -> str:
        if isinstance(captions, dict):
            return ("\n" if self.captions else "") + f"{image}\n{_rows(_numbered(captions))}"
        texts = [captions] if isinstance(captions, str) else captions
        return "\n".join(f"{image}: {text}" if len(self.images) > 1 else text for text in texts)


def _numbered(captions: Mapping[str, str | list[str]]) -> dict[str, str]:
    """Several captions of one model as `NAME 1`, `NAME 2`."""
    each = {name: [texts] if isinstance(texts, str) else texts for name, texts in captions.items()}
    return {
        f"{name} {number}" if len(texts) > 1 else name: text
        for name, texts in each.items()
        for number, text in enumerate(texts, 1)
    }


def _rows(captions: Mapping[str, str]) -> str:
    """A column of names and one of captions, 80 characters wide together; a long name has a line of its own."""
    column = min(max(map(len, captions)), _LABEL) + 2
    lines = []
    for name, text in captions.items():
        wrapped = textwrap.wrap(text, _WIDTH - 2 - column) or [""]
        first = [name] if len(name) > _LABEL else [f"{name:<{column}}{wrapped.pop(0)}".rstrip()]
        lines += [f"  {line}" for line in (*first, *(" " * column + rest for rest in wrapped))]
    return "\n".join(lines)
