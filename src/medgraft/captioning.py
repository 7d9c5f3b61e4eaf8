"""Captions for images, in batches."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from medgraft import hardware
from medgraft.acceleration.graphed_decoding import generator_for
from medgraft.backbones import Backbone, RemoteCaptioner, prompt_for
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.data.image_reader import ImageReader, ReadImages
from medgraft.features import FeatureSupply
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
    supply: FeatureSupply | None = None,
) -> list[str]:
    """One caption for each image, in order. `backbone` may carry an adapter; `bf16` computes under autocast.

    The prompt is the backbone's own if none is given. Features are taken from `supply` and kept there.
    """
    prompt = prompt_for(backbone, prompt)
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    captions: list[str] = []
    with tqdm(total=len(batches), desc="captioning", unit="batch", disable=not progress, dynamic_ncols=True) as bar:
        if isinstance(backbone, RemoteCaptioner):
            for some in batches:
                captions += backbone.caption([open_image(path) for path in some], prompt=prompt, options=options)
                bar.update()
            return captions
        where = hardware.device()
        backbone.model.to(where).eval()
        source, ids = _FeatureSource(backbone, where, prompt, supply), None
        with generator_for(backbone, where) as generate_ids, closing(source.read(batches)) as read_batches:
            for some, read in read_batches:
                inputs = backbone.generation_inputs(len(some), where, prompt, options)  # a GPU is waited for in it
                with hardware.autocast(where, bf16):
                    features = source.features(some, read)
                    if ids is not None:
                        captions += backbone.captions(ids)  # of the batch before, while a GPU computes features
                    ids = generate_ids(features, *inputs).cpu()
                bar.update()
        if ids is not None:
            captions += backbone.captions(ids)
    if supply is not None:
        supply.store.flush()
    return captions


class _FeatureSource:
    """Features at the last seam, computed or from a supply. For a GPU, images are read ahead in threads."""

    def __init__(self, backbone: Backbone, where: torch.device, prompt: str, supply: FeatureSupply | None):
        self._backbone, self._prompt, self._supply = backbone, prompt, supply
        self._reader = ImageReader(backbone, where) if where.type != "cpu" else None
        self._where = where

    def read(self, batches: Sequence[Sequence[Path]]) -> Generator[tuple[Sequence[Path], ReadImages | None]]:
        """Each batch with those of its images whose features are not stored, or None if they are to be read when needed."""
        if self._reader is None:
            yield from ((batch, None) for batch in batches)
        elif self._supply is None:
            yield from self._reader.ahead(batches)
        else:
            yield from self._reader.ahead(batches, self._supply.lacking)

    def features(self, paths: Sequence[Path], read: ReadImages | None) -> torch.Tensor:
        """[B, S, C] for the images of a batch."""
        backbone, ready = self._backbone, None
        if read is not None and read.values is not None and self._reader is not None:
            ready = read.paths, self._reader.pixel_values(read)
        if self._supply is not None:
            above = backbone.seams[backbone.seams.index(self._supply.seam) + 1 :]
            return backbone.through(above, self._supply.features(paths, ready), prompt=self._prompt)
        pixels = ready[1] if ready else backbone.pixel_values([open_image(path) for path in paths]).to(self._where)
        return backbone.encode(pixels, prompt=self._prompt)
