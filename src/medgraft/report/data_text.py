"""The inspection of a data set as text for a terminal 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from medgraft.inspection import Inspection, Problem
from medgraft.inspection.result import CaptionStatistics, ImageStatistics
from medgraft.report.wrapping import item, wrapped

_ITEMS = 5  # of a problem; the page and JSON have more


def data_text(found: Inspection) -> str:
    """Splits, images, captions, assumptions, and what a run does about each problem."""
    blocks = [f"{found.data}, for {found.backbone}"]
    if found.captions:
        blocks += [_splits(found), *([_images(found.images)] if found.images else []), _captions(found.captions, found)]
    if found.assumptions:
        blocks.append("Assumed\n" + "\n".join(map(item, found.assumptions)))
    if found.problems:
        blocks.append("What a run does\n" + "\n".join(map(_problem, found.problems)))
    refuses = f"A run that trains refuses these data: {found.refusal}"
    blocks.append(wrapped(refuses if found.refusal else "A run accepts these data."))
    return "\n\n".join(blocks)


def _splits(found: Inspection) -> str:
    lines = [f"{'':<12}{'images':>10}{'captions':>10}{'groups':>10}"]
    for name, counts in found.splits.items():
        groups = "-" if counts.groups is None else f"{counts.groups:,}"
        lines.append(f"{name:<12}{counts.images:>10,}{counts.captions:>10,}{groups:>10}")
    return "\n".join(lines)


def _images(images: ImageStatistics) -> str:
    width, height = images.width, images.height
    of = f" (of a sample of {images.sample:,})" if images.sample < images.images else ""
    lines = [
        f"width {width[0]:,} to {width[100]:,}, median {width[50]:,}",
        f"height {height[0]:,} to {height[100]:,}, median {height[50]:,}",
        f"formats{of}: {_counts(images.formats)}",
        f"modes{of}: {_counts(images.modes)}",
    ]
    return "Images\n" + "\n".join(map(item, lines))


def _captions(captions: CaptionStatistics, found: Inspection) -> str:
    words = captions.words
    lines = [
        f"{captions.captions:,}, {captions.distinct:,} of them different",
        f"{words[0]:,} to {words[100]:,} words, median {words[50]:,}",
    ]
    if captions.frequent:
        text, count = next(iter(captions.frequent.items()))
        lines.append(f"most frequent, {count:,} times: {textwrap.shorten(text, 100)}")
    if found.text and found.text.captions and not found.text.longer:  # else it is among the problems
        lines.append(found.text.lengths())
    return "Captions\n" + "\n".join(map(item, lines))


def _problem(problem: Problem) -> str:
    lines = [item(f"{problem.what} {problem.run}")]
    lines += [wrapped(case, "      ") for case in problem.items[:_ITEMS]]
    if len(problem.items) > _ITEMS:
        lines.append(f"      and {len(problem.items) - _ITEMS:,} more")
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
