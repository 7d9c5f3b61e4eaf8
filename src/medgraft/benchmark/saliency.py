"""Saliency of many images: scores for metrics, and attention maps for reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from medgraft.backbones import Backbone
from medgraft.data import open_image
from medgraft.inference import Inference
from medgraft.metrics.saliency_scores import Curves, Pointing, SaliencyScores
from medgraft.progress import progress_bar
from medgraft.saliency import CaptionMaps, can_be_localized, caption_maps, faithfulness, localize, packed
from medgraft.types import Example, own_prompts

_UNTRAINED_MAX = 500_000_000  # larger models get no randomly initialised decoder for comparison, which would be in fp32


@dataclass(frozen=True)
class SaliencyResult:
    """By image id: saliency scores for metrics, and packed maps for reports."""

    scores: Mapping[str, SaliencyScores]
    maps: Mapping[str, dict[str, Any]]


def score_saliency(
    inference: Inference,
    examples: Sequence[Example],
    predictions: Mapping[str, str],
    *,
    pointing: bool,
    curves: int,
    maps: int,
) -> SaliencyResult:
    """Saliency of `predictions`, which a model generated for `examples`, by image id.

    `pointing` measures attention to the boxes that facts have of what texts name, with the first reference (teacher forcing).
    `curves` images get deletion and insertion curves, `maps` images get maps, both for the model's own captions. Of a study all
    are of its first image, with the others beside it.
    """
    boxed = {each.id for each in examples if pointing and can_be_localized(each.captions[0], each.facts or {})}
    captioned = [example.id for example in examples if predictions[example.id].strip()]
    shown = captioned[: max(curves, maps)]
    wanted = [example for example in examples if example.id in boxed.union(shown)]
    backbone = inference.backbone
    backbone.to_device()
    untrained = backbone.randomly_initialized() if boxed and _is_small(backbone) else None
    found: dict[str, dict[str, Pointing]] = {}
    control: dict[str, dict[str, Pointing]] = {}
    of_captions: dict[str, CaptionMaps] = {}
    for batch in _batches(inference, wanted):
        references = {example.id: example.captions[0] for example in batch.examples if example.id in boxed}
        found |= _pointing(backbone, batch, batch.maps(backbone, references))
        if untrained is not None:
            control |= _pointing(backbone, batch, batch.maps(untrained, references))
        of_captions |= batch.maps(backbone, {e.id: predictions[e.id] for e in batch.examples if e.id in shown})
    by_id = {example.id: example for example in wanted}
    followed = {
        name: _curves(inference, by_id[name], of_captions[name], number)
        for number, name in enumerate(progress_bar(shown[:curves], desc="deletion and insertion", unit="image"))
        if of_captions[name].words
    }
    scores = {
        name: SaliencyScores(found.get(name, {}), control.get(name, {}), followed.get(name))
        for name in by_id
        if name in found or name in followed
    }
    return SaliencyResult(scores, {name: _packed(backbone, by_id[name], of_captions[name]) for name in shown[:maps]})


def _packed(backbone: Backbone, example: Example, maps: CaptionMaps) -> dict[str, Any]:
    size = open_image(example.image).size
    return packed(maps, backbone.visible_region(*size), size)


@dataclass(frozen=True)
class _Batch:
    """Examples with the vision features of their images, which are the same for every caption."""

    examples: Sequence[Example]
    features: torch.Tensor  # [images, S, C] at the first seam, of all images of each example
    inference: Inference

    def maps(self, backbone: Backbone, captions: Mapping[str, str]) -> dict[str, CaptionMaps]:
        """Attention maps of `backbone` for `captions`, by image id; `captions` may lack some of the examples."""
        rows = [row for row, example in enumerate(self.examples) if example.id in captions]
        if not rows:
            return {}
        texts = [captions[self.examples[row].id] for row in rows]
        each = len(self.features) // len(self.examples)
        images = [row * each + number for row in rows for number in range(each)]
        with self.inference.autocast():
            prompts = own_prompts([self.examples[row].prompt for row in rows], self.inference.prompt)
            found = caption_maps(backbone, self.features[images], texts, seam=backbone.seams[0], prompt=prompts)
        return {self.examples[row].id: maps for row, maps in zip(rows, found, strict=True)}


def _batches(inference: Inference, examples: Sequence[Example]) -> Iterator[_Batch]:
    """Batches of equally many images for each, with features: stored ones if they are at the first seam, else computed."""
    stored, size = inference.features, inference.maps_batch
    backbone, seam = inference.backbone, inference.backbone.seams[0]
    alike = [list(some) for _, some in groupby(sorted(examples, key=_images), key=_images)]
    batches = [some[start : start + size] for some in alike for start in range(0, len(some), size)]
    for batch in progress_bar(batches, desc="maps", unit="batch"):
        paths = [image for example in batch for image in example.images]
        with torch.no_grad(), inference.autocast():
            if stored is not None and stored.seam == seam:
                features = stored.features(paths).float()
            else:
                prompts = own_prompts([example.prompt for example in batch for _ in example.images], inference.prompt)
                features = backbone.forward_to(seam.name, inference.pixel_values(paths), prompt=prompts)
        yield _Batch(batch, features, inference)


def _pointing(backbone: Backbone, batch: _Batch, maps: Mapping[str, CaptionMaps]) -> dict[str, dict[str, Pointing]]:
    """Pointing scores by image id."""
    return {
        example.id: localize(maps[example.id], example.facts or {}, backbone.visible_region(*open_image(example.image).size))
        for example in batch.examples
        if example.id in maps
    }


def _images(example: Example) -> int:
    return len(example.images)


def _is_small(backbone: Backbone) -> bool:
    """Whether the model may get a randomly initialised copy; counts on the meta model, as quantised weights are packed."""
    return sum(p.numel() for p in type(backbone).meta_model(backbone.config).parameters()) <= _UNTRAINED_MAX


def _curves(inference: Inference, example: Example, maps: CaptionMaps, seed: int) -> Curves:
    image, backbone = open_image(example.image), inference.backbone
    return faithfulness(
        lambda images: np.exp(inference.log_likelihood([(image, *example.more_images) for image in images], maps.caption)),
        image, maps.mean(), backbone.visible_region(*image.size), seed=seed,
    )  # fmt: skip
