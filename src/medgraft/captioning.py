"""Caption images in batches."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from PIL.Image import Image

from medgraft import hardware
from medgraft.backbones import Backbone
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.data.image_reader import ImageReader, ReadImages
from medgraft.features import CachedFeatures
from medgraft.progress import progress_bar
from medgraft.types import ImageSource


@dataclass(frozen=True)
class Generated:
    """Captions, and how many of them reached `max_new_tokens` without an end token; None if an API does not say."""

    captions: list[str]
    cut_off: int | None
    max_new_tokens: int


@torch.no_grad()  # not inference_mode: parameters moved to a device within it could not be trained afterwards
def caption_images(
    backbone: Backbone,
    images: Sequence[ImageSource | Image],
    *,
    options: GenerationConfig = GenerationConfig(),
    prompt: str = "",
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    cached: CachedFeatures | None = None,
) -> Generated:
    """One caption per image, in order; images are files or PIL images. `backbone` may have an adapter.

    Computes in `dtype` by autocast. Features of files are read from and stored in `cached`, if given.
    """
    where = hardware.device()
    backbone.model.to(where).eval()
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    captions: list[str] = []
    cut_off, limit = 0, token_limit(backbone, prompt, options)
    source, ids = _FeatureSource(backbone, where, prompt, cached), None
    with (
        progress_bar(total=len(batches), desc="captioning", unit="batch") as bar,
        backbone.generating() as generate_ids,
        closing(source.read(batches)) as read_batches,
    ):
        for batch, read in read_batches:
            inputs = backbone.generation_inputs(len(batch), where, prompt, options)  # synchronises with a GPU
            with hardware.autocast(where, dtype):
                features = source.features(batch, read)
                if ids is not None:
                    captions += backbone.captions(ids)  # decode the previous batch while a GPU computes features
                ids = generate_ids(features, *inputs).cpu()
            if ids.shape[1] >= limit:
                cut_off += int((ids != backbone.end_id).all(1).sum())
            bar.update()
    if ids is not None:
        captions += backbone.captions(ids)
    if cached is not None:
        cached.store.flush()
    return Generated(captions, cut_off, limit)


def token_limit(backbone: Backbone, prompt: str, options: GenerationConfig) -> int:
    """`options.max_new_tokens`, or as many tokens as the model takes after the prompt if those are fewer."""
    return int(backbone.generation_inputs(1, torch.device("cpu"), prompt, options)[1].max_new_tokens)


class _FeatureSource:
    """Features at the last seam, computed or from `cached`. With a GPU, threads read image files ahead."""

    def __init__(self, backbone: Backbone, where: torch.device, prompt: str, cached: CachedFeatures | None):
        self._backbone, self._prompt, self._cached = backbone, prompt, cached
        self._reader = ImageReader(backbone, where) if where.type != "cpu" else None
        self._where = where

    def read(
        self, batches: Sequence[Sequence[ImageSource | Image]]
    ) -> Generator[tuple[Sequence[ImageSource | Image], ReadImages | None]]:
        """Each batch with its images that were read ahead, or None if `features` has to read them itself."""
        files = [[image for image in batch if isinstance(image, ImageSource)] for batch in batches]
        if self._reader is None or any(len(paths) < len(batch) for paths, batch in zip(files, batches, strict=True)):
            yield from ((batch, None) for batch in batches)
        elif self._cached is None:
            yield from self._reader.ahead(files)
        else:
            yield from self._reader.ahead(files, self._cached.lacking)

    def features(self, images: Sequence[ImageSource | Image], read: ReadImages | None) -> torch.Tensor:
        """Features [B, S, C] for the images of a batch."""
        backbone, ready = self._backbone, None
        if read is not None and read.values is not None and self._reader is not None:
            ready = read.paths, self._reader.pixel_values(read)
        paths = [image for image in images if isinstance(image, ImageSource)]
        if self._cached is not None and len(paths) == len(images):
            above = backbone.seams[backbone.seams.index(self._cached.seam) + 1 :]
            return backbone.forward_through(above, self._cached.features(paths, ready), prompt=self._prompt)
        pixels = ready[1] if ready else backbone.pixel_values(list(map(opened, images))).to(self._where)
        return backbone.encode(pixels, prompt=self._prompt)


def opened(image: ImageSource | Image) -> Image:
    """Open an image file; a PIL image is returned as it is."""
    return open_image(image) if isinstance(image, ImageSource) else image
