"""Caption images, or studies of several images, in batches."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from PIL.Image import Image

from medgraft import hardware, processes
from medgraft.backbones import Backbone
from medgraft.backbones.base import sampling
from medgraft.backbones.side_by_side import refuse_several_images, side_by_side
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.data.given_images import ImageOrStudy, images_of
from medgraft.data.image_reader import ImageReader, ReadImages
from medgraft.errors import DataError, first_line
from medgraft.features import CachedFeatures
from medgraft.progress import progress_bar
from medgraft.types import ImageSource, Prompts, prompt_of_each

_logger = logging.getLogger(__name__)
_SORTED = 16  # batches of images that are sorted by their number in a study and by the length of their prompts


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
    """The captions of `image`, or of a study; `num_return_sequences`, or none and the `problem` if it cannot be read."""

    image: ImageOrStudy
    captions: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True)
class CaptionedBatch:
    """Consecutive images with their captions; `cut_off` as in Generated."""

    images: list[ImageCaptions]
    cut_off: int | None


def captioned_batches(
    backbone: Backbone,
    images: Sequence[ImageOrStudy],
    *,
    options: GenerationConfig = GenerationConfig(),
    prompt: Prompts = "",
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    cached: CachedFeatures | None = None,
) -> Iterator[CaptionedBatch]:
    """Captions of `images` or studies in order, batch by batch. `backbone` may have an adapter.

    Goes on after an image that cannot be read. Computes in `dtype` by autocast. Features of files are read from and stored in
    `cached`, if given. If each image has its own prompt, a batch is of images whose prompts have equally many tokens, so that
    nothing is padded; and of studies of equally many images. Several processes share the batches, and each gets the captions
    of all. BackboneError for a study of several images if the model does not take that.
    """
    if not images:
        return
    counts = [len(images_of(image)) for image in images]
    if max(counts) > 1:
        refuse_several_images(type(backbone))
    if options.unread:
        _logger.warning("%s", options.unread)
    backbone.to_device()
    groups, prompts = _groups(backbone, prompt, counts, batch_size), prompt_of_each(prompt, len(images))
    batches = [([images[place] for place in places], [prompts[place] for place in places]) for places in groups]
    source = _FeatureSource(backbone, hardware.device(), cached)
    own = dict(hardware.share(enumerate(batches)))
    waiting: dict[int, ImageCaptions] = {}
    begin = 0
    captioned = processes.in_turn(len(batches), _in_this_process(backbone, own, source, options, dtype))
    for places, batch in zip(groups, captioned, strict=True):
        waiting |= zip(places, batch.images, strict=True)
        end = next(place for place in range(begin, len(images) + 1) if place not in waiting)
        yield CaptionedBatch([waiting.pop(place) for place in range(begin, end)], batch.cut_off)
        begin = end


def _groups(backbone: Backbone, prompt: Prompts, counts: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """The places of the studies of each batch; `counts` has the images of each."""
    studies = len(counts)
    if isinstance(prompt, str) and len(set(counts)) == 1:
        return [range(studies)[start : start + batch_size] for start in range(0, studies, batch_size)]
    lengths = [0] * studies if isinstance(prompt, str) else list(map(len, backbone.heads(prompt, studies)))
    kinds = list(zip(counts, lengths, strict=True))
    found: list[Sequence[int]] = []
    for start in range(0, studies, _SORTED * batch_size):
        places = sorted(range(studies)[start : start + _SORTED * batch_size], key=kinds.__getitem__)
        for _, same in groupby(places, key=kinds.__getitem__):
            whole = list(same)
            found += [whole[first : first + batch_size] for first in range(0, len(whole), batch_size)]
    return found


@torch.no_grad()  # not inference_mode: parameters moved to a device within it could not be trained afterwards
def _in_this_process(
    backbone: Backbone,
    batches: Mapping[int, tuple[Sequence[ImageOrStudy], Sequence[str]]],  # images and prompts, by number among all
    source: _FeatureSource,
    options: GenerationConfig,
    dtype: torch.dtype,
) -> Iterator[CaptionedBatch]:
    """The captions of each batch, whose number decides what is sampled."""
    where = hardware.device()
    before: tuple[dict[int, ImageCaptions], Sequence[ImageOrStudy], torch.Tensor, int] | None = None
    images = [batch for batch, _ in batches.values()]
    with backbone.generating() as generate_ids, closing(source.read(images)) as read_batches:
        for (number, (_, asked)), (batch, read) in zip(batches.items(), read_batches, strict=True):
            with hardware.autocast(where, dtype):
                features, problems = source.readable(batch, asked, read)
            if before is not None:
                yield _captioned(backbone, *before)  # decodes the previous batch while a GPU computes features
            failed = {place: ImageCaptions(batch[place], (), problem) for place, problem in problems.items()}
            before = failed, batch, torch.empty(0, 0, dtype=torch.long), 0
            if features is not None:
                left = _one_for_all([prompt for place, prompt in enumerate(asked) if place not in problems])
                inputs = backbone.generation_inputs(len(features), where, left, options)  # synchronises with a GPU
                with hardware.autocast(where, dtype), sampling(options, number):
                    before = failed, batch, generate_ids(features, *inputs).cpu(), int(inputs[1].max_new_tokens)
            if not source.reads_ahead:
                yield _captioned(backbone, *before)
                before = None
    if before is not None:
        yield _captioned(backbone, *before)
    if source.cached is not None:
        source.cached.store.flush()


def caption_images(
    backbone: Backbone,
    images: Sequence[ImageOrStudy],
    *,
    options: GenerationConfig = GenerationConfig(),
    prompt: Prompts = "",
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
    batch: Sequence[ImageOrStudy],
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


def _one_for_all(prompts: Sequence[str]) -> Prompts:
    """One prompt if all are the same, which need not be repeated for each row."""
    return prompts[0] if len(set(prompts)) == 1 else prompts


def token_limit(backbone: Backbone, prompt: Prompts, options: GenerationConfig) -> int:
    """`options.max_new_tokens`, or as many tokens as the model takes after the prompt, the shortest one, if those are fewer."""
    if not isinstance(prompt, str):
        prompt = min(set(prompt), key=lambda text: (len(backbone.prompt_ids(text)), text), default="")
    return int(backbone.generation_inputs(1, torch.device("cpu"), prompt, options)[1].max_new_tokens)


class _FeatureSource:
    """Features at the last seam, computed or from `cached`. With a GPU, threads read image files ahead."""

    def __init__(self, backbone: Backbone, where: torch.device, cached: CachedFeatures | None):
        self._backbone, self.cached = backbone, cached
        self._reader = ImageReader(backbone, where) if where.type != "cpu" else None
        self._where = where

    @property
    def reads_ahead(self) -> bool:
        """Whether images are read, and captions decoded, while the model computes."""
        return self._reader is not None

    def read(self, batches: Sequence[Sequence[ImageOrStudy]]) -> Generator[tuple[Sequence[ImageOrStudy], ReadImages | None]]:
        """Each batch with its images that were read ahead, or None if `features` has to read them itself."""
        images = [list(chain.from_iterable(map(images_of, batch))) for batch in batches]
        files = [[image for image in batch if isinstance(image, ImageSource)] for batch in images]
        if self._reader is None or files != images:
            yield from ((batch, None) for batch in batches)
            return
        select = (self.cached.lacking,) if self.cached is not None else ()
        with closing(self._reader.ahead(files, *select)) as ahead:
            for batch, (_, read) in zip(batches, ahead, strict=True):
                yield batch, read

    def readable(
        self, images: Sequence[ImageOrStudy], prompts: Sequence[str], read: ReadImages | None
    ) -> tuple[torch.Tensor | None, dict[int, str]]:
        """Features of the images that can be read, None if none can, and by place the problems of the others.

        A study of which an image cannot be read has the problem of that image.
        """
        try:
            return self.features(images, prompts, read), {}
        except (DataError, ValueError):  # of an image processor, which does not take every shape
            found = ((place, map(self._problem, images_of(image))) for place, image in enumerate(images))
            problems = {place: problem for place, of in found if (problem := next(filter(None, of), None))}
            if not problems:
                raise
            rest = [place for place in range(len(images)) if place not in problems]
            left = [images[place] for place in rest], [prompts[place] for place in rest]
            return self.features(*left, None) if rest else None, problems

    def _problem(self, image: ImageSource | Image) -> str | None:
        try:
            self._backbone.pixel_values([opened(image)])
        except DataError as error:
            return str(error)
        except ValueError as error:
            return f"{image} cannot be prepared for the model: {first_line(error)}"
        return None

    def features(self, batch: Sequence[ImageOrStudy], prompts: Sequence[str], read: ReadImages | None) -> torch.Tensor:
        """Features [B, n S, C] for a batch of images, or of studies of n images each."""
        studies = list(map(images_of, batch))
        counts, images = list(map(len, studies)), list(chain.from_iterable(studies))
        asked = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        ((_, features),) = side_by_side(self._of_images(images, asked, read), counts)
        return features

    def _of_images(
        self, images: Sequence[ImageSource | Image], prompts: Sequence[str], read: ReadImages | None
    ) -> torch.Tensor:
        """Features [N, S, C] of each image."""
        backbone, prompt, ready = self._backbone, _one_for_all(prompts), None
        if read is not None and read.problem is None and read.values is not None and self._reader is not None:
            ready = read.paths, self._reader.pixel_values(read)
        paths = [image for image in images if isinstance(image, ImageSource)]
        if self.cached is not None and len(paths) == len(images):
            above = backbone.seams[backbone.seams.index(self.cached.seam) + 1 :]
            return backbone.forward_through(above, self.cached.features(paths, ready), prompt=prompt)
        pixels = ready[1] if ready else backbone.pixel_values(list(map(opened, images))).to(self._where)
        return backbone.encode(pixels, prompt=prompt)


def opened(image: ImageSource | Image) -> Image:
    """Open an image file; a PIL image is returned as it is."""
    return open_image(image) if isinstance(image, ImageSource) else image
