"""Looking at many images: the numbers that metrics add up, and the maps that reports show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from medgraft import hardware
from medgraft.backbones import Backbone
from medgraft.data import open_image
from medgraft.features import FeatureSupply
from medgraft.metrics.looks import Curves, Looks, Pointing
from medgraft.saliency.faithfulness import faithfulness
from medgraft.saliency.localization import localize
from medgraft.saliency.maps import CaptionMaps, Method, caption_maps
from medgraft.saliency.packed import packed
from medgraft.types import Example, Seam

_UNTRAINED_MAX = 500_000_000  # parameters of a model that gets an untrained twin, which is held in fp32
_BATCH = 16  # at the most, as weights of attention are kept


@dataclass(frozen=True)
class Looked:
    """By image id: numbers for metrics, and packed maps for reports."""

    looks: Mapping[str, Looks]
    maps: Mapping[str, dict[str, Any]]


def look(
    backbone: Backbone,
    examples: Sequence[Example],
    said: Mapping[str, str],
    *,
    prompt: str,
    bf16: bool,
    batch_size: int,
    pointing: bool,
    curves: int,
    kept: int,
    supply: FeatureSupply | None = None,
    progress: bool = False,
) -> Looked:
    """What is known of where a model looked at `examples`, of which it `said` captions.

    `pointing` at the boxes of findings, for examples whose facts have one, as the model is told their first reference;
    deletion and insertion `curves` of so many images, and maps `kept` of so many, for its own captions.
    """
    boxed = [example for example in examples if example.facts and example.facts.get("box")] if pointing else []
    how: dict[str, Any] = {"prompt": prompt, "bf16": bf16, "batch_size": batch_size, "supply": supply, "progress": progress}
    trained = _pointing(backbone, boxed, **how)
    untrained = _pointing(backbone.untrained(), boxed, source=backbone, **how) if boxed and _has_room(backbone) else {}
    spoken = [example for example in examples if said[example.id].strip()]
    own = spoken[: max(curves, kept)]
    captions = [said[example.id] for example in own]
    maps = dict(
        zip(
            [example.id for example in own],
            maps_of(backbone, [e.image for e in own], captions, **how),
            strict=True,
        )
    )
    found = {
        example.id: _curves(backbone, example, maps[example.id], prompt, bf16, number)
        for number, example in enumerate(tqdm(own[:curves], desc="deletion and insertion", disable=not progress or not curves))
        if maps[example.id].words
    }
    looks = {
        example.id: Looks(trained.get(example.id, {}), untrained.get(example.id, {}), found.get(example.id))
        for example in examples
        if example.id in trained or example.id in found
    }
    return Looked(looks, {example.id: _packed(backbone, example, maps[example.id]) for example in own[:kept]})


def _packed(backbone: Backbone, example: Example, maps: CaptionMaps) -> dict[str, Any]:
    size = open_image(example.image).size
    return packed(maps, backbone.view(*size), size)


def maps_of(
    backbone: Backbone,
    paths: Sequence[Path],
    captions: Sequence[str],
    *,
    prompt: str,
    bf16: bool,
    method: Method = "attention",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    batch_size: int = _BATCH,
    supply: FeatureSupply | None = None,
    source: Backbone | None = None,
    progress: bool = False,
) -> Iterator[CaptionMaps]:
    """The maps of each image's caption, computed in batches.

    Features come from `supply` where it is low enough, and the vision tower's from `source` if that is another model.
    """
    where = hardware.device()
    source = source or backbone
    for model in (backbone, source):
        model.model.to(where).eval()
    size = min(batch_size, _BATCH)
    starts = range(0, len(paths), size)
    for start in tqdm(starts, desc="maps", unit="batch", disable=not progress or not paths, dynamic_ncols=True):
        some = slice(start, start + size)
        with hardware.autocast(where, bf16):
            inputs, seam = _inputs(source, paths[some], supply, prompt, None if method != "attention" else source.seams[0])
            found = caption_maps(
                backbone, inputs, captions[some], seam=seam, prompt=prompt, method=method, layers=layers, heads=heads
            )
        yield from found


@torch.no_grad()
def _inputs(
    backbone: Backbone, paths: Sequence[Path], supply: FeatureSupply | None, prompt: str, seam: Seam | None
) -> tuple[torch.Tensor, Seam | None]:
    """Features at `seam`, or pixel values if that is None; and the seam."""
    if supply is not None and supply.seam == seam:
        return supply.features(paths).float(), seam
    pixels = backbone.pixel_values([open_image(path) for path in paths]).to(next(backbone.model.parameters()).device)
    return (pixels, None) if seam is None else (backbone.stage(seam.name, pixels, prompt=prompt), seam)


def _pointing(backbone: Backbone, boxed: Sequence[Example], **how: Any) -> dict[str, dict[str, Pointing]]:
    """By image id, as the model is told the reference; `how` are options of `maps_of`."""
    maps = maps_of(backbone, [example.image for example in boxed], [example.captions[0] for example in boxed], **how)
    return {
        example.id: localize(found, example.facts or {}, backbone.view(*open_image(example.image).size))
        for example, found in zip(boxed, maps, strict=True)
    }


def _has_room(backbone: Backbone) -> bool:
    """Whether the model is small enough for an untrained twin; counted on its shapes, as quantised weights hide theirs."""
    return sum(p.numel() for p in type(backbone).skeleton(backbone.config).parameters()) <= _UNTRAINED_MAX


def _curves(backbone: Backbone, example: Example, maps: CaptionMaps, prompt: str, bf16: bool, number: int) -> Curves:
    image = open_image(example.image)
    with hardware.autocast(hardware.device(), bf16):
        return faithfulness(backbone, image, maps.caption, maps.mean(), backbone.view(*image.size), prompt=prompt, seed=number)
