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
from medgraft.features import CachedFeatures
from medgraft.metrics.saliency_scores import Curves, Pointing, SaliencyScores
from medgraft.saliency.faithfulness import faithfulness
from medgraft.saliency.localization import localize
from medgraft.saliency.maps import CaptionMaps, Method, caption_maps
from medgraft.saliency.packed import packed
from medgraft.types import Example, Seam

_UNTRAINED_MAX = 500_000_000  # parameters of a model that gets an untrained twin, which is held in fp32
_BATCH = 16  # at the most, as weights of attention are kept


@dataclass(frozen=True)
class SaliencyResult:
    """By image id: numbers for metrics, and packed maps for reports."""

    scores: Mapping[str, SaliencyScores]
    maps: Mapping[str, dict[str, Any]]


def score_saliency(
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
    cached: CachedFeatures | None = None,
    progress: bool = False,
) -> SaliencyResult:
    """What is known of where a model looked at `examples`, of which it `said` captions.

    `pointing` at the boxes of findings, for examples whose facts have one, as the model is told their first reference;
    deletion and insertion `curves` of so many images, and maps `kept` of so many, for its own captions.
    """
    boxed = {example.id for example in examples if example.facts and example.facts.get("box")} if pointing else set()
    spoken = [example.id for example in examples if said[example.id].strip()]
    shown = spoken[: max(curves, kept)]
    looked_at = boxed.union(shown)
    wanted = [example for example in examples if example.id in looked_at]
    backbone.model.to(hardware.device()).eval()
    untrained = backbone.randomly_initialized() if boxed and _has_room(backbone) else None
    found: dict[str, dict[str, Pointing]] = {}
    control: dict[str, dict[str, Pointing]] = {}
    maps: dict[str, CaptionMaps] = {}
    for batch in _batches(backbone, wanted, min(batch_size, _BATCH), prompt, bf16, cached, progress):
        told = {example.id: example.captions[0] for example in batch.examples if example.id in boxed}
        found |= _pointing(backbone, batch, batch.maps(backbone, told))
        if untrained is not None:
            control |= _pointing(backbone, batch, batch.maps(untrained, told))
        maps |= batch.maps(backbone, {example.id: said[example.id] for example in batch.examples if example.id in shown})
    by_id = {example.id: example for example in wanted}
    several = tqdm(shown[:curves], desc="deletion and insertion", disable=not progress or not curves, dynamic_ncols=True)
    followed = {
        name: _curves(backbone, by_id[name], maps[name], prompt, bf16, number)
        for number, name in enumerate(several)
        if maps[name].words
    }
    scores = {
        name: SaliencyScores(found.get(name, {}), control.get(name, {}), followed.get(name))
        for name in by_id
        if name in found or name in followed
    }
    return SaliencyResult(scores, {name: _packed(backbone, by_id[name], maps[name]) for name in shown[:kept]})


def _packed(backbone: Backbone, example: Example, maps: CaptionMaps) -> dict[str, Any]:
    size = open_image(example.image).size
    return packed(maps, backbone.visible_region(*size), size)


@dataclass(frozen=True)
class _Batch:
    """Some examples with what the vision tower makes of their images, which is the same for every caption."""

    examples: Sequence[Example]
    features: torch.Tensor  # [N, S, C] at the first seam
    seam: Seam
    prompt: str
    bf16: bool

    def maps(self, model: Backbone, captions: Mapping[str, str]) -> dict[str, CaptionMaps]:
        """Where `model` looks as it is told `captions`, by image id, of some of the examples."""
        rows = [row for row, example in enumerate(self.examples) if example.id in captions]
        if not rows:
            return {}
        told = [captions[self.examples[row].id] for row in rows]
        with hardware.autocast(self.features.device, self.bf16):
            found = caption_maps(model, self.features[rows], told, seam=self.seam, prompt=self.prompt)
        return {self.examples[row].id: maps for row, maps in zip(rows, found, strict=True)}


def _batches(
    backbone: Backbone, examples: Sequence[Example], size: int, prompt: str, bf16: bool, cached: CachedFeatures | None,
    progress: bool,
) -> Iterator[_Batch]:  # fmt: skip
    """Features come from `cached` where it is low enough."""
    where, seam = hardware.device(), backbone.seams[0]
    starts = range(0, len(examples), size)
    for start in tqdm(starts, desc="maps", unit="batch", disable=not progress or not examples, dynamic_ncols=True):
        some = examples[start : start + size]
        paths = [example.image for example in some]
        with torch.no_grad(), hardware.autocast(where, bf16):
            if cached is not None and cached.seam == seam:
                features = cached.features(paths).float()
            else:
                features = backbone.forward_to(seam.name, _pixels(backbone, paths), prompt=prompt)
        yield _Batch(some, features, seam, prompt, bf16)


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
) -> Iterator[CaptionMaps]:
    """The maps of each image's caption, computed in batches."""
    where = hardware.device()
    backbone.model.to(where).eval()
    for start in range(0, len(paths), _BATCH):
        some = slice(start, start + _BATCH)
        pixels = _pixels(backbone, paths[some])
        with hardware.autocast(where, bf16):
            found = caption_maps(backbone, pixels, captions[some], prompt=prompt, method=method, layers=layers, heads=heads)
        yield from found


def _pixels(backbone: Backbone, paths: Sequence[Path]) -> torch.Tensor:
    return backbone.pixel_values([open_image(path) for path in paths]).to(hardware.device())


def _pointing(backbone: Backbone, batch: _Batch, maps: Mapping[str, CaptionMaps]) -> dict[str, dict[str, Pointing]]:
    """By image id, as a model was told the reference."""
    return {
        example.id: localize(maps[example.id], example.facts or {}, backbone.visible_region(*open_image(example.image).size))
        for example in batch.examples
        if example.id in maps
    }


def _has_room(backbone: Backbone) -> bool:
    """Whether the model is small enough for an untrained twin; counted on its shapes, as quantised weights hide theirs."""
    return sum(p.numel() for p in type(backbone).meta_model(backbone.config).parameters()) <= _UNTRAINED_MAX


def _curves(backbone: Backbone, example: Example, maps: CaptionMaps, prompt: str, bf16: bool, number: int) -> Curves:
    image = open_image(example.image)
    with hardware.autocast(hardware.device(), bf16):
        return faithfulness(
            backbone, image, maps.caption, maps.mean(), backbone.visible_region(*image.size), prompt=prompt, seed=number
        )
