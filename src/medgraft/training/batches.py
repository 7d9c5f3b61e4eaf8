"""Where a run's batches come from: features in the device's memory, in the store, or pixels; made here or by workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medgraft import hardware
from medgraft.backbones import Backbone
from medgraft.config import RunConfig
from medgraft.data.collate import CaptionPairs, PixelCache
from medgraft.data.levels import pixel_levels
from medgraft.features import FeatureSupply, ResidentFeatures, device_bytes, load_resident
from medgraft.training.collator import Collator
from medgraft.training.workers import batch_bytes, worker_count
from medgraft.types import Example

_TOKENS_MULTIPLE = 16  # to which captions are filled up on an NVIDIA GPU: few lengths occur, and its products are quick


@dataclass(frozen=True)
class Batches:
    """What makes batches, of what, in how many processes besides this one; and what of them lies on the device."""

    pairs: CaptionPairs
    collator: Collator
    workers: int
    resident: ResidentFeatures | None
    pixel_table: torch.Tensor | None


def resident_features(config: RunConfig, examples: Sequence[Example], supply: FeatureSupply | None) -> ResidentFeatures | None:
    """The stored features of `examples` in the device's memory, None if they do not fit."""
    if supply is None:
        return None
    device = hardware.device()
    room = device_bytes(device, config.features.device_gb)
    return load_resident(supply, [example.image for example in examples], device, room)


def prepare_batches(
    backbone: Backbone,
    config: RunConfig,
    train: Sequence[Example],
    prompt: str,
    supply: FeatureSupply | None,
    resident: ResidentFeatures | None,
) -> Batches:
    """Batches of `train`; the cache of pixels is set up for workers if there are any."""
    device, pairs = hardware.device(), CaptionPairs(train)
    levels = pixel_levels(backbone) if device.type != "cpu" else None
    pixels = PixelCache(backbone, int(config.train.pixel_cache_gb * 1e9), levels)
    rows, multiple = resident.rows if resident else {}, _TOKENS_MULTIPLE if device.type == "cuda" else 1
    collator = Collator(backbone, pixels, prompt, config.train.max_text_tokens, supply, rows, multiple)
    workers = _workers(config, collator, pairs, device)
    if workers:
        paths = [example.image for example, _ in pairs.pairs]
        pixels.share([path for path in paths if supply is None or supply.digest(path) not in supply.store])
    return Batches(pairs, collator, workers, resident, levels.table if levels else None)


def _workers(config: RunConfig, collator: Collator, pairs: CaptionPairs, device: torch.device) -> int:
    wanted = config.train.dataloader_num_workers
    if wanted != "auto":
        return wanted
    if device.type == "cpu" or all(example.image in collator.resident for example, _ in pairs.pairs):
        return 0
    size = batch_bytes(collator([pairs[0]]), config.train.per_device_train_batch_size)
    return worker_count(device, size)
