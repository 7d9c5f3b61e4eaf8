"""Caption images in batches."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from PIL.Image import Image

from medgraft import hardware, processes
from medgraft.backbones import Backbone
from medgraft.backbones.base import sampling
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.data.image_reader import ImageReader, ReadImages
from medgraft.errors import DataError, first_line
from medgraft.features import CachedFeatures
from medgraft.progress import progress_bar
from medgraft.types import ImageSource

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generated:
    """The first caption of each image, and how many of them reached `max_new_tokens` without an end token.

    `cut_off` is None if an API does not say.
    """

    captions: list[str]
    cut_off: int | None
    max_new_tokens: int


@dataclass(frozen=True)
class ImageCaptions:
    """The captions of `image`, `num_return_sequences` of them; none, and the `problem`, if it cannot be read."""

    image: ImageSource | Image
    captions: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True)
class CaptionedBatch:
    """Consecutive images with their captions; `cut_off` as in Generated."""

    images: list[ImageCaptions]
    cut_off: int | None


def captioned_batches(
    backbone: Backbone,
    images: Sequence[ImageSource | Image],
    *,
    options: GenerationConfig = GenerationConfig(),
    prompt: str = "",
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    cached: CachedFeatures | None = None,
) -> Iterator[CaptionedBatch]:
    """Captions of `images` in order, batch by batch; images are files or PIL images. `backbone` may have an adapter.

    Goes on after an image that cannot be read. Computes in `dtype` by autocast. Features of files are read from and stored in
    `cached`, if given. Several processes share the batches, and each gets the captions of all.
    """
    if not images:
        return
    if options.unread:
        _logger.warning("%s", options.unread)
    backbone.to_device()
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    source = _FeatureSource(backbone, hardware.device(), prompt, cached)
    own = dict(hardware.share(enumerate(batches)))
    yield from processes.in_turn(len(batches), _in_this_process(backbone, own, source, options, dtype))


@torch.no_grad()  # not inference_mode: parameters moved to a device within it could not be trained afterwards
def _in_this_process(
    backbone: Backbone,
    batches: Mapping[int, Sequence[ImageSource | Image]],  # by their number among all, which decides what is sampled
    source: _FeatureSource,
    options: GenerationConfig,
    dtype: torch.dtype,
) -> Iterator[CaptionedBatch]:
    where, prompt, cached = hardware.device(), source.prompt, source.cached
    limit = token_limit(backbone, prompt, options)
    before: tuple[dict[int, ImageCaptions], Sequence[ImageSource | Image], torch.Tensor] | None = None
    with backbone.generating() as generate_ids, closing(source.read(list(batches.values()))) as read_batches:
        for number, (batch, read) in zip(batches, read_batches, strict=True):
            with hardware.autocast(where, dtype):
                features, problems = source.readable(batch, read)
            if before is not None:
                yield _captioned(backbone, *before, limit)  # decodes the previous batch while a GPU computes features
            failed = {place: ImageCaptions(batch[place], (), problem) for place, problem in problems.items()}
            before = failed, batch, torch.empty(0, 0, dtype=torch.long)
            if features is not None:
                inputs = backbone.generation_inputs(len(features), where, prompt, options)  # synchronises with a GPU
                with hardware.autocast(where, dtype), sampling(options, number):
                    before = failed, batch, generate_ids(features, *inputs).cpu()
            if not source.reads_ahead:
                yield _captioned(backbone, *before, limit)
                before = None
    if before is not None:
        yield _captioned(backbone, *before, limit)
    if cached is not None:
        cached.store.flush()


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
    """The first caption of each of `images`, as `captioned_batches` makes them; DataError if one cannot be read."""
    batches = captioned_batches(
        backbone, images, options=options, prompt=prompt, batch_size=batch_size, dtype=dtype, cached=cached
    )
    return collected(batches, len(images), token_limit(backbone, prompt, options))


def _captioned(
    backbone: Backbone,
    failed: dict[int, ImageCaptions],
    batch: Sequence[ImageSource | Image],
    ids: torch.Tensor,
    limit: int,
) -> CaptionedBatch:
    """The images of a batch with the captions in `ids` [images that did not fail * captions of each, N]."""
    texts = backbone.captions(ids) if len(ids) else []
    each = len(texts) // max(len(batch) - len(failed), 1)
    rest = (tuple(texts[start : start + each]) for start in range(0, len(texts), max(each, 1)))
    found = [failed.get(place) or ImageCaptions(image, next(rest)) for place, image in enumerate(batch)]
    full = len(ids) and ids.shape[1] >= limit
    return CaptionedBatch(found, int((ids[::each] != backbone.end_id).all(1).sum()) if full else 0)


def collected(batches: Iterable[CaptionedBatch], images: int, max_new_tokens: int) -> Generated:
    """The first captions of all `batches`, with a progress bar; DataError at the first image that cannot be read."""
    captions: list[str] = []
    cut_off: int | None = 0
    with progress_bar(total=images, desc="captioning", unit="image") as bar:
        for batch in batches:
            for each in batch.images:
                if each.problem is not None:
                    raise DataError(each.problem)
                captions.append(each.captions[0])
            cut_off = None if cut_off is None or batch.cut_off is None else cut_off + batch.cut_off
            bar.update(len(batch.images))
    return Generated(captions, cut_off, max_new_tokens)


def token_limit(backbone: Backbone, prompt: str, options: GenerationConfig) -> int:
    """`options.max_new_tokens`, or as many tokens as the model takes after the prompt if those are fewer."""
    return int(backbone.generation_inputs(1, torch.device("cpu"), prompt, options)[1].max_new_tokens)


class _FeatureSource:
    """Features at the last seam, computed or from `cached`. With a GPU, threads read image files ahead."""

    def __init__(self, backbone: Backbone, where: torch.device, prompt: str, cached: CachedFeatures | None):
        self._backbone, self.prompt, self.cached = backbone, prompt, cached
        self._reader = ImageReader(backbone, where) if where.type != "cpu" else None
        self._where = where

    @property
    def reads_ahead(self) -> bool:
        """Whether images are read, and captions decoded, while the model computes."""
        return self._reader is not None

    def read(
        self, batches: Sequence[Sequence[ImageSource | Image]]
    ) -> Generator[tuple[Sequence[ImageSource | Image], ReadImages | None]]:
        """Each batch with its images that were read ahead, or None if `features` has to read them itself."""
        files = [[image for image in batch if isinstance(image, ImageSource)] for batch in batches]
        if self._reader is None or any(len(paths) < len(batch) for paths, batch in zip(files, batches, strict=True)):
            yield from ((batch, None) for batch in batches)
        elif self.cached is None:
            yield from self._reader.ahead(files)
        else:
            yield from self._reader.ahead(files, self.cached.lacking)

    def readable(
        self, images: Sequence[ImageSource | Image], read: ReadImages | None
    ) -> tuple[torch.Tensor | None, dict[int, str]]:
        """Features of the images that can be read, None if none can, and by place the problems of the others."""
        try:
            return self.features(images, read), {}
        except (DataError, ValueError):  # of an image processor, which does not take every shape
            problems = {place: problem for place, image in enumerate(images) if (problem := self._problem(image))}
            if not problems:
                raise
            rest = [image for place, image in enumerate(images) if place not in problems]
            return self.features(rest, None) if rest else None, problems

    def _problem(self, image: ImageSource | Image) -> str | None:
        try:
            self._backbone.pixel_values([opened(image)])
        except DataError as error:
            return str(error)
        except ValueError as error:
            return f"{image} cannot be prepared for the model: {first_line(error)}"
        return None

    def features(self, images: Sequence[ImageSource | Image], read: ReadImages | None) -> torch.Tensor:
        """Features [B, S, C] for the images of a batch."""
        backbone, ready = self._backbone, None
        if read is not None and read.problem is None and read.values is not None and self._reader is not None:
            ready = read.paths, self._reader.pixel_values(read)
        paths = [image for image in images if isinstance(image, ImageSource)]
        if self.cached is not None and len(paths) == len(images):
            above = backbone.seams[backbone.seams.index(self.cached.seam) + 1 :]
            return backbone.forward_through(above, self.cached.features(paths, ready), prompt=self.prompt)
        pixels = ready[1] if ready else backbone.pixel_values(list(map(opened, images))).to(self._where)
        return backbone.encode(pixels, prompt=self.prompt)


def opened(image: ImageSource | Image) -> Image:
    """Open an image file; a PIL image is returned as it is."""
    return open_image(image) if isinstance(image, ImageSource) else image
