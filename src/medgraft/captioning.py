"""Captions for images, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from medgraft import hardware
from medgraft.backbones import Backbone, RemoteCaptioner, prompt_for
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.features import CachedFeatures
from medgraft.heap import kept_heap


@kept_heap()
@torch.no_grad()  # not inference_mode: parameters moved within it could not be trained afterwards
def caption_images(
    backbone: Backbone | RemoteCaptioner,
    paths: Sequence[Path],
    *,
    options: GenerationConfig = GenerationConfig(),
    prompt: str | None = None,
    batch_size: int = 32,
    bf16: bool = False,
    progress: bool = False,
    cached: CachedFeatures | None = None,
) -> list[str]:
    """One caption for each image, in order. `backbone` may carry an adapter; `bf16` computes under autocast.

    The prompt is the backbone's own if none is given. Features are taken from `cached` and kept there.
    """
    where = hardware.device()
    prompt = prompt_for(backbone, prompt)
    if isinstance(backbone, Backbone):
        backbone.model.to(where).eval()
    captions: list[str] = []
    starts = range(0, len(paths), batch_size)
    for start in tqdm(starts, desc="captioning", unit="batch", disable=not progress, dynamic_ncols=True):
        some = paths[start : start + batch_size]
        if isinstance(backbone, RemoteCaptioner):
            captions += backbone.caption([open_image(path) for path in some], prompt=prompt, options=options)
            continue
        with hardware.autocast(where, bf16):
            features = _features(backbone, some, prompt, where, cached)
            captions += backbone.generate(features, prompt=prompt, options=options)
    if cached is not None:
        cached.store.flush()
    return captions


def _features(
    backbone: Backbone, paths: Sequence[Path], prompt: str, where: torch.device, cached: CachedFeatures | None
) -> torch.Tensor:
    """Features at the last seam, [B, S, C]."""
    if cached is None:
        return backbone.encode(backbone.pixel_values([open_image(path) for path in paths]).to(where), prompt=prompt)
    above = backbone.seams[backbone.seams.index(cached.seam) + 1 :]
    return backbone.forward_through(above, cached.features(paths), prompt=prompt)
