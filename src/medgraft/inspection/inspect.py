"""Reads a data set as a run does, and collects what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medgraft.backbones import Backbone, RemoteCaptioner, get_captioner, prompt_for
from medgraft.backbones.loading import read_config
from medgraft.captioning import Generated, token_limit
from medgraft.config import RunConfig
from medgraft.data import RefusedDataError, load_data
from medgraft.inspection.captions import caption_statistics
from medgraft.inspection.images import LeakingPair, ModelView, SheetImage, contact_sheet, image_statistics, leaking_pairs
from medgraft.inspection.problems import reading_problems, split_problems, text_problems
from medgraft.inspection.result import Inspection, SplitCounts
from medgraft.plugin import PluginManager
from medgraft.text_statistics import GenerationStatistics, TextStatistics, generation_statistics, text_statistics
from medgraft.types import SPLITS, CaptionData, Example


@dataclass(frozen=True)
class InspectedData:
    """An inspection, with images for its page: a contact sheet and examples of leaks.

    `as_read`: they are shown as they are read, since the backbone makes no picture of them.
    """

    inspection: Inspection
    as_read: bool
    sheet: tuple[SheetImage, ...] = ()
    pairs: tuple[LeakingPair, ...] = ()


@dataclass(frozen=True)
class _Reading:
    """`refusal` is why a run refuses the data, `unusable` why nothing can be used even without the bad rows."""

    data: CaptionData
    refusal: str | None = None
    unusable: str | None = None


def inspect_data(config: RunConfig, *, plugins: PluginManager) -> InspectedData:
    """What a run with `config` finds in its data. No weights are loaded.

    Data that a run refuses are read again without what makes it refuse them, so that the result has all of that.
    """
    backbone = _without_weights(config.backbone, plugins)
    reading = _read(config, plugins)
    data = reading.data
    problems = list(reading_problems(data.report, reading.unusable, config))
    refusal = reading.refusal
    text: TextStatistics | None = None
    references: GenerationStatistics | None = None
    if data.examples:
        missing_splits = list(split_problems(data, config))
        problems += missing_splits
        refusal = refusal or next((problem.what for problem in missing_splits if problem.refused), None)
    if data.examples and backbone is not None:
        text, references = _text(backbone, data, config)
        problems += text_problems(text, references)
    inspection = Inspection(
        data=f"{config.data.name}:{config.data.path or ''}".rstrip(":"),
        backbone=config.backbone,
        refusal=refusal,
        problems=tuple(problems),
        assumptions=data.report.assumptions,
        splits={split: _counts(data.split(split)) for split in SPLITS},
        images=image_statistics(data.examples) if data.examples else None,
        captions=caption_statistics(data.examples) if data.examples else None,
        text=text,
        references=references,
    )
    view = ModelView(backbone)
    return InspectedData(inspection, view.as_read, contact_sheet(data, view), leaking_pairs(data, view))


def _read(config: RunConfig, plugins: PluginManager) -> _Reading:
    try:
        return _Reading(load_data(config.data, plugins=plugins))
    except RefusedDataError as error:
        refusal = str(error)
    changes = {"skip_bad_rows": True} | ({"on_leak": "warn"} if config.data.on_leak == "error" else {})
    try:
        return _Reading(load_data(config.data.model_copy(update=changes), plugins=plugins), refusal)
    except RefusedDataError as error:
        return _Reading(CaptionData(config.data.name, (), error.report), refusal, str(error))


def _without_weights(name: str, plugins: PluginManager) -> Backbone | None:
    """The backbone's tokenizer and image processor around a model without weights; None if it is behind an API."""
    captioner, source = get_captioner(name, plugins=plugins)
    if issubclass(captioner, RemoteCaptioner):
        return None
    return captioner.from_model(source, captioner.meta_model(read_config(source, captioner.model_types)))


def _text(backbone: Backbone, data: CaptionData, config: RunConfig) -> tuple[TextStatistics, GenerationStatistics]:
    prompt, evaluated = prompt_for(backbone, config.train.prompt), data.split(config.eval_split)
    limit = config.train.max_text_tokens
    text = text_statistics(backbone, data.split("train"), evaluated, prompt=prompt, max_text_tokens=limit)
    generated = Generated([], None, token_limit(backbone, prompt, config.generation))
    return text, generation_statistics(backbone, evaluated, generated)


def _counts(examples: Sequence[Example]) -> SplitCounts:
    captions, groups, images = 0, set[str](), 0
    for example in examples:
        images += 1
        captions += sum(map(bool, example.captions))
        if example.group:
            groups.add(example.group)
    return SplitCounts(images=images, captions=captions, groups=len(groups) or None)
