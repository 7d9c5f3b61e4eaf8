"""Builds a run's batches from features in device memory, stored features or pixels, in this process or in workers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch

from medgraft import hardware
from medgraft.backbones import Backbone
from medgraft.config import RunConfig
from medgraft.data.augmentation import Views, flip_warning, recurring_images
from medgraft.data.collate import CaptionPairs, PixelCache
from medgraft.data.levels import pixel_levels
from medgraft.features import CachedFeatures, ResidentFeatures, device_bytes, load_resident
from medgraft.training.collator import Collator
from medgraft.training.workers import batch_bytes, worker_count
from medgraft.types import Example, ImageSource

_logger = logging.getLogger(__name__)
_AT_ONCE = 1000  # digests looked up with one query
_TOKENS_MULTIPLE = 16  # caption lengths are padded to this on an NVIDIA GPU: fewer distinct lengths, and faster matrix products


@dataclass(frozen=True)
class Batches:
    """Dataset, collator and number of worker processes; `resident` and `pixel_table` are on the device."""

    pairs: CaptionPairs
    collator: Collator
    workers: int
    resident: ResidentFeatures | None
    pixel_table: torch.Tensor | None


def resident_features(config: RunConfig, examples: Sequence[Example], cached: CachedFeatures | None) -> ResidentFeatures | None:
    """The stored features of `examples` in device memory, None if there are none or they do not fit."""
    if cached is None:
        return None
    device = hardware.device()
    max_bytes = device_bytes(device, config.features.device_gb)
    return load_resident(cached, list(recurring_images(config, examples)), device, max_bytes) if max_bytes else None


def prepare_batches(
    backbone: Backbone,
    config: RunConfig,
    train: Sequence[Example],
    prompt: str,
    cached: CachedFeatures | None,
    resident: ResidentFeatures | None,
) -> Batches:
    """Batches of `train`; with workers, the pixel cache is in memory that they share. Logs how images are augmented."""
    if config.augmentation.on:
        _logger.info("augmentation: %s", config.augmentation)
    if config.augmentation.horizontal_flip:
        _logger.warning("%s", flip_warning(train))
    device, pairs = hardware.device(), CaptionPairs(train, Views.of(config))
    levels = pixel_levels(backbone) if device.type != "cpu" else None
    pixels = PixelCache(backbone, int(config.train.pixel_cache_gb * 1e9), levels)
    rows, multiple = resident.rows if resident else {}, _TOKENS_MULTIPLE if device.type == "cuda" else 1
    collator = Collator(backbone, pixels, prompt, config.train.max_text_tokens, cached, rows, multiple)
    workers = _workers(config, collator, pairs, device)
    if workers:
        pixels.share(_read_as_pixels(recurring_images(config, train), cached))
    return Batches(pairs, collator, workers, resident, levels.table if levels else None)


def _read_as_pixels(images: Iterable[ImageSource], cached: CachedFeatures | None) -> Iterator[ImageSource]:
    """Those of `images` whose features are not stored."""
    remaining = iter(images)
    while chunk := list(islice(remaining, _AT_ONCE)):
        yield from chunk if cached is None else cached.lacking(chunk)


def _workers(config: RunConfig, collator: Collator, pairs: CaptionPairs, device: torch.device) -> int:
    wanted = config.train.dataloader_num_workers
    if wanted != "auto":
        return wanted
    # the first images too: if augmented anew in every epoch they are in no memory
    images = chain(pairs[0][0].images, recurring_images(config, pairs.examples))
    if device.type == "cpu" or all(image in collator.resident for image in images):
        return 0
    some = (pairs[number] for number in range(min(len(pairs), _AT_ONCE)))
    size = batch_bytes(collator([max(some, key=lambda pair: len(pair[0].images))]), config.train.per_device_train_batch_size)
    return worker_count(device, size)
