"""The images of the report: each with its references, the captions of all entries, scores and maps; and their subgroups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgraft.config import RunConfig
from medgraft.data import load_data, open_image
from medgraft.errors import MedgraftError
from medgraft.plugin import KnownScores, PluginManager
from medgraft.report.image_scores import image_scores
from medgraft.report.pages import jpeg_uri
from medgraft.report.results import Entry, Group
from medgraft.report.subgroups import Subgroup, subgroup_scores, subgroups
from medgraft.saliency import read_maps
from medgraft.types import Example

_SIDES = (2048, 1024, 768, 512, 384, 224)  # px, of the longest side of images
_SAMPLED = 12  # images, for the size of all
_IMAGE_CHARACTERS = 24_000_000  # about the most in a page
_MAPS_CHARACTERS = 6_000_000  # the most in a page


def image_browser(group: Group, score: str, folder: Path, *, plugins: PluginManager) -> dict[str, Any]:
    """`examples` are the data of the script, ordered by `score`; `subgroups` and `image_scores` as their modules say."""
    parts = subgroups(group.entries[0].captions[0])
    examples = _examples(group.entries, parts, score, folder, plugins)
    scores = dict.fromkeys([score, *(name for entry in group.entries for each in entry.measured for name in each)])
    return {
        "examples": examples,
        "maps": any(item["maps"] for item in examples["items"]),
        "subgroups": subgroup_scores(group, parts, KnownScores(plugins).shown(scores)),
        "image_scores": image_scores(group.entries, parts),
    }


def _examples(
    entries: Sequence[Entry], parts: Sequence[Subgroup], score: str, folder: Path, plugins: PluginManager
) -> dict[str, Any]:
    """Captions are of the first seed of each entry; `fields` has the images of each subgroup, by number.

    `pictures` are the images, each once; an item has the number of its own.
    """
    captions = [entry.captions[0] for entry in entries]
    each = [entry.measured[0].get(score) for entry in entries]
    pictures, images, counts = _images(entries, plugins)
    maps = _maps(entries, folder) if images else {}
    items = []
    for i, key in enumerate(captions[0].ids):
        values = [None if m is None or score not in m.per_image else float(m.per_image[score][i]) for m in each]
        scores = [None if value is None or not math.isfinite(value) else round(value, 3) for value in values]
        known = [value for value in scores if value is not None]
        items.append(
            {
                "id": key,
                "prompt": captions[0].prompts.get(key),
                "references": captions[0].references[key],
                "captions": [run.predictions[key] for run in captions],
                "scores": scores,
                "spread": round(max(known) - min(known), 3) if known else 0.0,
                "image": images.get(key),
                "count": counts.get(key, 1),
                "maps": maps.get(key),
            }
        )
    fields: dict[str, dict[str, Sequence[int]]] = {}
    for part in parts:
        fields.setdefault(part.field, {})[part.value] = part.images
    names = [entry.name for entry in entries]
    return {"names": names, "score": score, "items": items, "pictures": pictures, "fields": fields}


def _images(entries: Sequence[Entry], plugins: PluginManager) -> tuple[list[str], dict[str, int], dict[str, int]]:
    """Images as data URIs, as large as all of them fit in the page, the place of each example's, and how many it has.

    They are the first images of examples; all is empty without the data.
    """
    config = RunConfig.model_validate(entries[0].records[0].config)
    try:
        examples = load_data(config.data, plugins=plugins, splits=(config.eval_split,)).split(config.eval_split)
    except MedgraftError:
        return [], {}, {}
    wanted = set(entries[0].captions[0].ids)
    found = [example for example in examples if example.id in wanted]
    if not found:
        return [], {}, {}
    different = list({example.image: example for example in found}.values())
    sample = different[:: max(1, len(different) // _SAMPLED)]
    for side in _SIDES:
        sizes = [len(_uri(example, side)) for example in sample]
        if sum(sizes) / len(sizes) * len(different) <= _IMAGE_CHARACTERS:
            break
    uris = {example.image: uri for example in different if (uri := _uri(example, side))}
    places = {image: place for place, image in enumerate(uris)}
    shown = {example.id: places[example.image] for example in found if example.image in places}
    return list(uris.values()), shown, {example.id: len(example.images) for example in found}


def _uri(example: Example, side: int) -> str:
    """The image as a data URI, empty if it can no longer be read."""
    try:
        return jpeg_uri(open_image(example.image), longest=side, quality=80)
    except MedgraftError:
        return ""


def _maps(entries: Sequence[Entry], folder: Path) -> dict[str, list[dict[str, Any] | None]]:
    """Packed maps by image id, of the first seed of each entry, for as many images as fit in the page."""
    of_runs = [read_maps(folder / (entry.records[0].adapter or "")) for entry in entries]
    found: dict[str, list[dict[str, Any] | None]] = {}
    left = _MAPS_CHARACTERS
    for key in entries[0].captions[0].ids:
        of_image = [maps.get(key) for maps in of_runs]
        left -= sum(len(word[2]) for maps in of_image if maps for word in maps["words"])
        if any(of_image) and left > 0:
            found[key] = of_image
    return found
