"""Captions for images, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from medgraft.backbones import Backbone, RemoteCaptioner, prompt_for
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.training import hardware


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
) -> list[str]:
    """One caption for each image, in order. `backbone` may carry an adapter; `bf16` computes under autocast.

    The prompt is the backbone's own if none is given.
    """
    where = hardware.device()
    prompt = prompt_for(backbone, prompt)
    if isinstance(backbone, Backbone):
        backbone.model.to(where).eval()
    captions: list[str] = []
    starts = range(0, len(paths), batch_size)
    for start in tqdm(starts, desc="captioning", unit="batch", disable=not progress, dynamic_ncols=True):
        images = [open_image(path) for path in paths[start : start + batch_size]]
        if isinstance(backbone, RemoteCaptioner):
            captions += backbone.caption(images, prompt=prompt, options=options)
            continue
        with hardware.autocast(where, bf16):
            features = backbone.encode(backbone.pixel_values(images).to(where), prompt=prompt)
            captions += backbone.generate(features, prompt=prompt, options=options)
    return captions
