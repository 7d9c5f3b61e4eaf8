"""What is wrong with a data set, and what a run does about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from medgraft.config import DataConfig
from medgraft.inspection.reading import Reading
from medgraft.inspection.result import Problem
from medgraft.text_statistics import GenerationStatistics, TextStatistics
from medgraft.types import CaptionData, Split

_LEFT_OUT = "A run leaves them out, and counts them."
_LEAK_SETTINGS = "data.on_leak=drop leaves such images out of training, data.on_leak=error refuses the data."
_ON_LEAK = {
    "warn": f"A run warns, and scores on these images are too good. {_LEAK_SETTINGS}",
    "drop": "A run leaves the images of the earlier split out, as data.on_leak=drop says.",
    "error": "A run refuses them, as data.on_leak=error says. Split by patient or article, or set data.on_leak=drop.",
}


def reading_problems(reading: Reading, config: DataConfig) -> Iterator[Problem]:
    """Problems of the files."""
    report = reading.data.report
    if reading.second_refusal not in (None, reading.refusal):
        run = "A run refuses this too, once the bad rows are left out."
        yield Problem(kind="refused", count=None, refused=True, what=str(reading.second_refusal), run=run)
    if rows := report.bad_rows:
        skipped = config.skip_bad_rows
        run = "A run refuses them. Correct them, or leave them out with --set data.skip_bad_rows=true."
        yield Problem(
            kind="bad_rows", count=len(rows), refused=not skipped, what=f"{_count(len(rows), 'row')} cannot be read.",
            run=_LEFT_OUT if skipped else run, items=tuple(map(str, rows)),
        )  # fmt: skip
    for kind, items, what in (
        ("missing", report.missing, "not there"),
        ("unreadable", report.corrupt, "there but cannot be shown"),
    ):
        if items:
            are = f"{_count(len(items), 'image')} {'is' if len(items) == 1 else 'are'} {what}."
            yield Problem(kind=kind, count=len(items), refused=False, what=are, run=_LEFT_OUT, items=tuple(items))
    if report.uncaptioned:
        what = f"{_count(report.uncaptioned, 'image')} without a caption."
        yield Problem(kind="uncaptioned", count=report.uncaptioned, refused=False, what=what, run=_LEFT_OUT)
    for leak in report.leaks or ():
        yield Problem(
            kind=leak.kind, count=leak.images, refused=config.on_leak == "error",
            what=f"{replace(leak, examples=())}.", run=_ON_LEAK[config.on_leak],
            items=tuple(f"{one} and {other}" for one, other in leak.examples),
        )  # fmt: skip


def split_problems(data: CaptionData, evaluated: Split) -> Iterator[Problem]:
    """Splits that a run needs and that have no images."""
    if not data.split("train"):
        yield Problem(
            kind="no_training", count=0, refused=True, what="No images to train on.",
            run="A run that trains refuses the data. medgraft evaluate and the strategy zero-shot use other splits.",
        )  # fmt: skip
    if not data.split(evaluated):
        run = "A run trains and scores nothing; zero-shot is refused. Name another split with --set eval_split."
        yield Problem(kind="no_evaluation", count=0, refused=False, what=f"No images in {evaluated}.", run=run)


def text_problems(text: TextStatistics, references: GenerationStatistics) -> Iterator[Problem]:
    """Captions that are too long for the settings, or in a language that the tokenizer does not know."""
    if text.longer:
        limited = text.max_text_tokens < text.max_positions
        advice = "Raise train.max_text_tokens." if limited else "Shorten them, or choose another backbone."
        run = f"A run warns and trains on their beginnings, without an end token. {advice}"
        yield Problem(kind="truncated", count=text.longer, refused=False, what=text.lengths(), run=run)
    if text.has_unknown_tokens:
        run = "A run warns and trains on them. Choose a backbone that knows the language."
        yield Problem(kind="unknown_tokens", count=None, refused=False, what=text.unknown_tokens(), run=run)
    if references.has_long_references:
        run = "A run cuts captions off at this length. Raise generation.max_new_tokens."
        yield Problem(kind="long_references", count=None, refused=False, what=references.references(), run=run)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
