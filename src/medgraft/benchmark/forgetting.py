"""Forgetting: how much the loss on the base's own captions of general images rises by training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from medgraft import hardware
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.data.paths import IMAGE_SUFFIXES
from medgraft.data.scenes import general_scenes
from medgraft.errors import ConfigError
from medgraft.forgetting_config import ForgettingConfig
from medgraft.inference import Captioner, Inference
from medgraft.strategies import Applied, changes_base

_GREEDY = GenerationConfig(max_new_tokens=32)


@dataclass(frozen=True)
class BaseCaptions:
    """The base's greedy captions of general images, and its mean loss on their tokens, in nats."""

    images: tuple[Image, ...]
    captions: tuple[str, ...]
    loss: float


def base_captions(captioner: Captioner, applied: Applied | None, config: ForgettingConfig) -> BaseCaptions | None:
    """What the base says of general images, before it is trained; None if nothing is trained or measured here."""
    wanted = config.images and applied is not None and applied.strategy.trains and hardware.is_main_process()
    if not wanted or applied is None or not isinstance(captioner, Inference):
        return None
    images = _general_images(config)
    with _as_base(applied):
        size = captioner.batch_size
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        captions = [text for batch in batches for text in _captions(captioner, batch)]
        return BaseCaptions(tuple(images), tuple(captions), captioner.mean_loss(images, captions))


def forgetting(captioner: Captioner, before: BaseCaptions | None) -> float | None:
    """The trained model's loss on the base's captions minus the base's, in nats per token; None if it is not finite."""
    if before is None or not isinstance(captioner, Inference):
        return None
    lost = captioner.mean_loss(before.images, before.captions) - before.loss
    return lost if math.isfinite(lost) else None


def _general_images(config: ForgettingConfig) -> Sequence[Image]:
    if config.folder is None:
        return general_scenes(config.images)
    folder = Path(config.folder).expanduser()
    files = sorted(file for file in folder.glob("[!.]*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ConfigError(f"forgetting.folder: {folder} has no images. Name a folder of general images, or leave it out.")
    return [open_image(file) for file in files[: config.images]]


@contextmanager
def _as_base(applied: Applied) -> Iterator[None]:
    """Switch off the adapter, which some methods initialise at random, unless its initialisation changed the base."""
    model: Any = applied.model.eval()
    if not hasattr(model, "disable_adapter") or changes_base(applied.strategy):
        yield
        return
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


@torch.no_grad()
def _captions(captioner: Inference, images: Sequence[Image]) -> list[str]:
    """Greedy captions by the plain model, without kernels that record its weights."""
    with captioner.autocast():
        features = captioner.backbone.encode(captioner.pixel_values(images), prompt=captioner.prompt)
        return captioner.backbone.generate(features, prompt=captioner.prompt, options=_GREEDY)
