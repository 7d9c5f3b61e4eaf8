"""Computes the outputs of frozen parts for the training images before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from medgraft import hardware
from medgraft.config import RunConfig
from medgraft.data.augmentation import recurring_images
from medgraft.features import CachedFeatures
from medgraft.prepare import compute_dtype
from medgraft.types import Example


def build_features(cached: CachedFeatures, config: RunConfig, examples: Sequence[Example]) -> None:
    """Compute and store the missing features of `examples`, as far as the store's limit allows.

    Augmented training images have features if their views are fixed.
    """
    where = hardware.device()
    cached.backbone.to_device()
    with hardware.autocast(where, compute_dtype(config)):
        total = sum(1 for _ in hardware.share(recurring_images(config, examples)))
        paths = hardware.share(recurring_images(config, examples))
        cached.build(paths, batch_size=config.train.per_device_train_batch_size, total=total)
    hardware.wait_for_everyone()
    cached.store.refresh()
