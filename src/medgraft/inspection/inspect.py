"""Reads a data set as a run does, and collects what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medgraft.backbones import RemoteCaptioner, get_captioner, load_without_weights
from medgraft.config import RunConfig
from medgraft.inspection.captions import caption_statistics
from medgraft.inspection.images import LeakingPair, ModelView, SheetImage, contact_sheet, image_statistics, leaking_pairs
from medgraft.inspection.problems import reading_problems, split_problems, text_problems
from medgraft.inspection.reading import read
from medgraft.inspection.result import Inspection, SplitCounts
from medgraft.plugin import PluginManager
from medgraft.text_statistics import GenerationStatistics, TextStatistics
from medgraft.token_counts import planned_statistics
from medgraft.types import SPLITS, Example


@dataclass(frozen=True)
class InspectedData:
    """An inspection, with images for its page: a contact sheet and examples of leaks.

    `as_read`: they are shown as they are read, since the backbone makes no picture of them.
    """

    inspection: Inspection
    as_read: bool
    sheet: tuple[SheetImage, ...] = ()
    pairs: tuple[LeakingPair, ...] = ()


def inspect_data(config: RunConfig, *, plugins: PluginManager) -> InspectedData:
    """What a run with `config` finds in its data. No weights are loaded.

    If a run refuses the data, they are read again without their bad rows, so that the result has all of these and the rest.
    """
    captioner, _ = get_captioner(config.backbone, plugins=plugins)
    remote = issubclass(captioner, RemoteCaptioner)
    backbone = None if remote else load_without_weights(config.backbone, plugins=plugins, image_size=config.image.size)
    reading = read(config.data, plugins=plugins)
    data, refusal, examples = reading.data, reading.refusal, reading.data.examples
    text: TextStatistics | None = None
    references: GenerationStatistics | None = None
    problems = list(reading_problems(reading, config.data))
    if examples:
        without_images = list(split_problems(data, config.eval_split))
        problems += without_images
        refusal = refusal or next((problem.what for problem in without_images if problem.refused), None)
    if examples and backbone is not None:
        text, references = planned_statistics(config, backbone, data.split("train"), data.split(config.eval_split))
        problems += text_problems(text, references)
    inspection = Inspection(
        data=str(config.data),
        backbone=config.backbone,
        refusal=refusal,
        problems=tuple(sorted(problems, key=lambda problem: not problem.refused)),
        assumptions=data.report.assumptions,
        splits={split: _counts(data.split(split)) for split in SPLITS},
        images=image_statistics(examples),
        captions=caption_statistics(examples) if examples else None,
        text=text,
        references=references,
    )
    view = ModelView(backbone)
    return InspectedData(inspection, view.as_read, contact_sheet(data, view), leaking_pairs(data, view))


def _counts(examples: Sequence[Example]) -> SplitCounts:
    captions, groups, images = 0, set[str](), 0
    for example in examples:
        images += len(example.images)
        captions += sum(map(bool, example.captions))
        if example.group:
            groups.add(example.group)
    return SplitCounts(images=images, captions=captions, groups=len(groups) or None)
