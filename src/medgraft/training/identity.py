"""What a checkpoint belongs to: everything that decides which weights a training ends in, but its length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from medgraft import hardware
from medgraft.config import RunConfig
from medgraft.data.images import image_digests
from medgraft.prepare import Prepared
from medgraft.training.best import LOSS
from medgraft.training.validation import validation_examples
from medgraft.types import CaptionData, Example

_AT_ONCE = 10_000  # images whose digests are looked up together
_SHOWN = 5  # differences that a message lists
_NO_MATTER = {  # settings of training that change how long it takes, how long it goes on, or what is left of it
    "num_train_epochs", "max_steps", "report_to", "dataloader_num_workers", "pixel_cache_gb", "per_device_eval_batch_size",
    "save_steps", "save_total_limit", "save_final_state", "learning_rate", "patience", "logging_steps",
}  # fmt: skip
_IN_WORDS = {  # digests, which nobody compares by eye
    "captions": "other training captions", "images": "other training images or another order of them",
    "base": "another base", "start": "another adapter to start from", "validation": "other validation images or captions",
}  # fmt: skip


def identity_of(config: RunConfig, model: Prepared, data: CaptionData, start: str | None) -> dict[str, Any]:
    """What decides the trained weights, by name: settings, and digests of base, training images, captions and start.

    If the best weights are kept, validation images and their captions count too, and how captions are generated.
    """
    assert model.applied is not None
    strategy = model.applied.strategy
    captions, images = _digests(data.split("train"))
    found = {
        "backbone": config.backbone.partition(":")[0],
        "base": model.base_fingerprint,
        "start": start,
        "captions": captions,
        "images": images,
        "seed": config.seed,
        "dtype": str(model.dtype),
        "processes": hardware.process_count(),
        "learning_rate": config.train.learning_rate or strategy.learning_rate,
        "features.views": config.features.views,
        "image.size": config.image.size,
        **_named("strategy", strategy.model_dump(mode="json", exclude={"learning_rate"})),
        **_named("train", config.train.model_dump(mode="json", exclude=_NO_MATTER)),
        **_named("augmentation", config.augmentation.model_dump(mode="json")),
    }
    if config.train.best_by is not None:
        found["validation"] = _digests(validation_examples(config, data))
        found |= _named("generation", {} if config.train.best_by == LOSS else config.generation.recorded())
    identity: dict[str, Any] = json.loads(json.dumps(found))  # as it will be read
    return identity


def _digests(examples: Sequence[Example]) -> tuple[str, str]:
    """Of the captions, and of the images."""
    captions, images = hashlib.sha256(), hashlib.sha256()
    remaining = iter(examples)
    while chunk := list(islice(remaining, _AT_ONCE)):
        digests = image_digests([image for example in chunk for image in example.images])
        for example in chunk:
            texts = example.captions if example.prompt is None else (example.prompt, example.captions)
            captions.update(json.dumps(texts).encode())
            images.update("+".join(digests[image] for image in example.images).encode())
    return captions.hexdigest(), images.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities, in words; empty if nothing does."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    found = [_IN_WORDS.get(name) or f"{name} {before.get(name)}, not {now.get(name)}" for name in names]
    more = f"; {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _named(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for name, value in settings.items()}
