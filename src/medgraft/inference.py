"""Inference with a loaded model and its settings: captions, saliency maps of their words, and likelihoods."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain

import torch
from PIL.Image import Image

from medgraft import hardware
from medgraft.backbones import AnyBackbone, Backbone, RemoteCaptioner, Usage, prompt_for
from medgraft.backbones.side_by_side import refuse_several_images, side_by_side
from medgraft.captioning import CaptionedBatch, Generated, ImageCaptions, captioned_batches, collected, opened, token_limit
from medgraft.config import GenerationConfig
from medgraft.data.given_images import ImageOrStudy, images_of
from medgraft.errors import ConfigError, DataError
from medgraft.features import CachedFeatures
from medgraft.metrics.measured import Array
from medgraft.saliency import CaptionMaps, MapOptions, caption_maps
from medgraft.types import ImageSource, Prompts, own_prompts, prompt_of_each

_logger = logging.getLogger(__name__)
_MAPS_BATCH = 16  # upper limit, because attention weights need much memory


class Captioner(ABC):
    """The interface for captioning with a local model (`Inference`) or one behind an API (`RemoteInference`).

    `images` are files, PIL images or studies, tuples of such images that are seen together. `prompts` are those of the images,
    None for images without one; left out, all have the captioner's.
    """

    def caption(
        self,
        images: Sequence[ImageOrStudy],
        generation: GenerationConfig = GenerationConfig(),
        prompts: Sequence[str | None] = (),
    ) -> Generated:
        """The first caption of each image, in order. DataError if one cannot be read."""
        return collected(self.batches(images, generation, prompts), len(images), self.token_limit(generation))

    @abstractmethod
    def batches(
        self,
        images: Sequence[ImageOrStudy],
        generation: GenerationConfig = GenerationConfig(),
        prompts: Sequence[str | None] = (),
    ) -> Iterator[CaptionedBatch]:
        """All captions of each image, in order, as they are made; goes on after an image that cannot be read."""

    @abstractmethod
    def token_limit(self, generation: GenerationConfig) -> int:
        """The number of tokens at which a caption is cut off."""

    @abstractmethod
    def usage(self) -> Usage | None:
        """Requests to the API and their cost; None for a local model."""


@dataclass(frozen=True)
class Inference(Captioner):
    """A local model. It computes in `dtype` by autocast and reads the features of image files from `features`, if given."""

    backbone: Backbone
    prompt: str = ""
    dtype: torch.dtype = torch.float32
    batch_size: int = 32
    features: CachedFeatures | None = None

    def batches(
        self,
        images: Sequence[ImageOrStudy],
        generation: GenerationConfig = GenerationConfig(),
        prompts: Sequence[str | None] = (),
    ) -> Iterator[CaptionedBatch]:
        """See Captioner."""
        return captioned_batches(
            self.backbone, images, options=generation, prompt=own_prompts(prompts, self.prompt), batch_size=self.batch_size,
            dtype=self.dtype, cached=self.features,
        )  # fmt: skip

    def token_limit(self, generation: GenerationConfig) -> int:
        """See Captioner."""
        return token_limit(self.backbone, self.prompt, generation)

    def usage(self) -> None:
        """See Captioner."""

    def maps(
        self, images: Sequence[ImageSource | Image], captions: Sequence[str], options: MapOptions = MapOptions()
    ) -> Iterator[CaptionMaps]:
        """For each image, saliency maps of the words of its caption, computed by teacher forcing."""
        self.backbone.to_device()
        for start in range(0, len(images), self.maps_batch):
            batch = slice(start, start + self.maps_batch)
            with self.autocast():
                found = caption_maps(
                    self.backbone, self.pixel_values(images[batch]), captions[batch], prompt=self.prompt, options=options
                )
            yield from found

    @torch.no_grad()
    def log_likelihood(self, images: Sequence[ImageOrStudy], caption: str) -> Array:
        """The log-likelihood of `caption` for each image, averaged over its tokens: [images]; of studies of equal size."""
        backbone, where = self.backbone, hardware.device()
        backbone.to_device()
        text = backbone.text_batch([caption] * len(images), prompt=self.prompt, max_tokens=backbone.max_positions).to(where)
        with self.autocast():
            ((_, features),) = self.features_of(images, self.prompt)
            logits = backbone.decode(features, text)[1]
        rows = (text.labels[0] != -100).nonzero()[:, 0]  # the same for all images
        log_probs = logits[:, rows - backbone.logits_offset].float().log_softmax(-1)  # [B, labels, V]
        mean = log_probs.gather(-1, text.labels[:, rows, None]).mean(dim=(1, 2))
        result: Array = mean.cpu().double().numpy()
        return result

    @torch.no_grad()
    def mean_loss(
        self,
        images: Sequence[ImageOrStudy],
        captions: Sequence[str],
        max_tokens: int | None = None,
        prompts: Sequence[str | None] = (),
    ) -> float:
        """The mean loss of a token of the images' captions, end tokens included, in nats; `prompts` as of Captioner.

        Captions are truncated to `max_tokens`, by default to what the model takes.
        """
        backbone, where = self.backbone, hardware.device()
        backbone.to_device()
        longest = backbone.max_positions if max_tokens is None else max_tokens
        total, tokens = 0.0, 0
        for start in range(0, len(images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            prompt = own_prompts(prompts[batch], self.prompt)
            text = backbone.text_batch(captions[batch], prompt=prompt, max_tokens=longest).to(where)
            with self.autocast():
                for rows, features in self.features_of(images[batch], prompt):
                    part = text.rows(rows)
                    count = int((part.labels[:, backbone.logits_offset :] != -100).sum())
                    total, tokens = total + float(backbone.decode(features, part)[0]) * count, tokens + count
        return total / tokens

    def features_of(self, images: Sequence[ImageOrStudy], prompt: Prompts) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The features of images or studies at the last seam, as `side_by_side` gives them; `prompt` may be that of each."""
        studies = list(map(images_of, images))
        counts = list(map(len, studies))
        if max(counts) > 1:
            refuse_several_images(type(self.backbone))
        of_each = zip(prompt_of_each(prompt, len(counts)), counts, strict=True)
        asked = prompt if isinstance(prompt, str) else [own for own, count in of_each for _ in range(count)]
        return side_by_side(self.backbone.encode(self.pixel_values([*chain(*studies)]), prompt=asked), counts)

    @property
    def maps_batch(self) -> int:
        """The batch size for maps."""
        return min(self.batch_size, _MAPS_BATCH)

    def autocast(self) -> AbstractContextManager[object]:
        """A context manager for computing in `dtype`."""
        return hardware.autocast(hardware.device(), self.dtype)

    def pixel_values(self, images: Sequence[ImageSource | Image]) -> torch.Tensor:
        """Preprocess images, on the model's device."""
        return self.backbone.pixel_values(list(map(opened, images))).to(hardware.device())


@dataclass(frozen=True)
class RemoteInference(Captioner):
    """A model behind an API."""

    client: RemoteCaptioner
    prompt: str
    batch_size: int = 32

    def batches(
        self,
        images: Sequence[ImageOrStudy],
        generation: GenerationConfig = GenerationConfig(),
        prompts: Sequence[str | None] = (),
    ) -> Iterator[CaptionedBatch]:
        """See Captioner."""
        if unread := self.client.check_generation(generation):
            _logger.warning("%s", unread)
        if any(len(images_of(image)) > 1 for image in images):
            refuse_several_images(type(self.client))
        for start in range(0, len(images), self.batch_size):
            found = [_opened_or_problem(*images_of(image)) for image in images[start : start + self.batch_size]]
            before = self.client.usage().cut_off
            pictures = [picture for picture, _ in found if picture is not None]
            asked = own_prompts(prompts[start : start + self.batch_size], self.prompt)
            if not isinstance(asked, str):
                asked = [prompt for prompt, (picture, _) in zip(asked, found, strict=True) if picture is not None]
            texts = iter(self.client.caption(pictures, prompt=asked, options=generation))
            named = zip(images[start:], found, strict=False)
            done = [ImageCaptions(image, (next(texts),) if opens else (), problem) for image, (opens, problem) in named]
            after = self.client.usage().cut_off
            yield CaptionedBatch(done, None if before is None or after is None else after - before)

    def token_limit(self, generation: GenerationConfig) -> int:
        """See Captioner."""
        return generation.max_new_tokens

    def usage(self) -> Usage:
        """See Captioner."""
        return self.client.usage()


def _opened_or_problem(image: ImageSource | Image) -> tuple[Image | None, str | None]:
    try:
        return opened(image), None
    except DataError as error:
        return None, str(error)


def captioner_for(
    backbone: AnyBackbone,
    *,
    prompt: str | None,
    dtype: torch.dtype,
    batch_size: int = 32,
    features: CachedFeatures | None = None,
) -> Captioner:
    """The Captioner for a loaded model; uses the model's default prompt if `prompt` is None."""
    prompt = prompt_for(backbone, prompt)
    if isinstance(backbone, RemoteCaptioner):
        if hardware.process_count() > 1:
            raise ConfigError(f"{backbone.source} is a model behind an API, which one process asks. Start one, not several.")
        return RemoteInference(backbone, prompt, batch_size)
    return Inference(backbone, prompt, dtype, batch_size, features)
