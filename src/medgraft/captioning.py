"""Captions for images, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image

from medgraft import hardware
from medgraft.backbones import Backbone
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.features import CachedFeatures
from medgraft.progress import progress_bar


@torch.no_grad()  # not inference_mode: parameters moved within it could not be trained afterwards
def caption_images(
    backbone: Backbone,
    images: Sequence[Path | Image],
    *,
    options: GenerationConfig = GenerationConfig(),
    prompt: str = "",
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    cached: CachedFeatures | None = None,
) -> list[str]:
    """One caption for each image, a file or an image in memory, in order. `backbone` may carry an adapter.

    Computed in `dtype` by autocast. Features of files are taken from `cached` and kept there.
    """
    where = hardware.device()
    backbone.model.to(where).eval()
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    captions: list[str] = []
    for some in progress_bar(batches, desc="captioning", unit="batch"):
        with hardware.autocast(where, dtype == torch.bfloat16):
            features = _features(backbone, some, prompt, where, cached)
            captions += backbone.generate(features, prompt=prompt, options=options)
    if cached is not None:
        cached.store.flush()
    return captions


def _features(
    backbone: Backbone, images: Sequence[Path | Image], prompt: str, where: torch.device, cached: CachedFeatures | None
) -> torch.Tensor:
    """Features at the last seam, [B, S, C]."""
    paths = [image for image in images if isinstance(image, Path)]
    if cached is None or len(paths) < len(images):
        return backbone.encode(backbone.pixel_values(list(map(opened, images))).to(where), prompt=prompt)
    above = backbone.seams[backbone.seams.index(cached.seam) + 1 :]
    return backbone.forward_through(above, cached.features(paths), prompt=prompt)


def opened(image: Path | Image) -> Image:
    """The image in a file, or the image itself."""
    return open_image(image) if isinstance(image, Path) else image
