"""Captions for images, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from medgraft.backbones import Backbone
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.train import hardware


@torch.no_grad()  # not inference_mode: parameters moved within it could not be trained afterwards
def caption_images(
    backbone: Backbone,
    paths: Sequence[Path],
    *,
    options: GenerationConfig = GenerationConfig(),
    prompt: str = "",
    batch_size: int = 32,
    bf16: bool = False,
    progress: bool = False,
) -> list[str]:
    """One caption for each image, in order. `backbone` may carry an adapter; `bf16` computes under autocast."""
    where = hardware.device()
    backbone.model.to(where)
    backbone.model.eval()
    captions: list[str] = []
    starts = range(0, len(paths), batch_size)
    for start in tqdm(starts, desc="captioning", unit="batch", disable=not progress, dynamic_ncols=True):
        images = [open_image(path) for path in paths[start : start + batch_size]]
        with hardware.autocast(where, bf16):
            features = backbone.encode(backbone.pixel_values(images).to(where))
            captions += backbone.generate(features, prompt=prompt, options=options)
    return captions
