"""The loss and CIDEr of an adapter, to see what another form of it costs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medgraft import hardware
from medgraft.adapter import LoadedAdapter, Manifest
from medgraft.benchmark.evaluation import Evaluation, evaluated, generation_of
from medgraft.captioning import opened
from medgraft.config import DataConfig
from medgraft.data import load_data
from medgraft.errors import MedgraftError
from medgraft.inference import Inference
from medgraft.plugin import PluginManager
from medgraft.scoring import captions_of
from medgraft.types import Example

_logger = logging.getLogger(__name__)
_BATCH = 16


@dataclass(frozen=True)
class Quality:
    """The mean loss of a token of the first reference captions, and the captions' CIDEr."""

    loss: float
    cider: float


def validation_examples(
    data: DataConfig | None, manifest: Manifest | None, images: int | None, *, plugins: PluginManager
) -> Sequence[Example]:
    """The first `images` validation examples of `data`, or of the data that the adapter was trained on if those are found."""
    if images == 0:
        return ()
    try:
        known = manifest.data if manifest else {"name": "unknown"}
        named = data or DataConfig(name=known["name"], options=known.get("options", {}))
        wanted = named.model_copy(update={"max_images": images})
        return load_data(wanted, plugins=plugins, splits=("validation",)).split("validation")
    except MedgraftError as error:
        if data is not None:
            raise
        _logger.warning("What it costs was not measured: %s Name the data with --data.", error)
        return ()


def quality(loaded: LoadedAdapter, examples: Sequence[Example], *, plugins: PluginManager) -> Quality:
    """Loss and CIDEr on `examples`."""
    inference = inference_of(loaded)
    cider = evaluation(inference, loaded, examples, plugins=plugins).metrics["cider"]
    return Quality(_loss(inference, examples, loaded.manifest.max_text_tokens if loaded.manifest else 128), cider)


def inference_of(loaded: LoadedAdapter) -> Inference:
    """The adapter ready for captions, in the precision of its training."""
    bf16 = hardware.bf16_supported(hardware.device().type) and (loaded.manifest is None or loaded.manifest.bf16)
    prompt = loaded.backbone.default_prompt if loaded.prompt is None else loaded.prompt
    return Inference(loaded.backbone, prompt, torch.bfloat16 if bf16 else torch.float32)


def evaluation(
    inference: Inference, loaded: LoadedAdapter, examples: Sequence[Example], *, plugins: PluginManager
) -> Evaluation:
    """CIDEr of generated captions, with its interval."""
    captions = inference.caption([example.image for example in examples], generation_of(loaded)).captions
    return evaluated(captions_of(examples, captions), metrics=("cider",), plugins=plugins)


@torch.no_grad()
def _loss(inference: Inference, examples: Sequence[Example], max_tokens: int) -> float:
    backbone, where = inference.backbone, hardware.device()
    backbone.model.to(where).eval()
    total, labels = 0.0, 0
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        captions = [example.captions[0] for example in batch]
        text = backbone.text_batch(captions, prompt=inference.prompt, max_tokens=max_tokens).to(where)
        pixels = backbone.pixel_values([opened(example.image) for example in batch]).to(where)
        with inference.autocast():
            loss = backbone.loss(backbone.encode(pixels, prompt=inference.prompt), text)
        count = int((text.labels[:, backbone.logits_offset :] != -100).sum())
        total, labels = total + float(loss) * count, labels + count
    return total / labels
