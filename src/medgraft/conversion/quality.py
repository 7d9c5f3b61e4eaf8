"""The loss and CIDEr of an adapter, to see what another form of it costs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from medgraft.adapter import LoadedAdapter, Manifest
from medgraft.backbones import prompt_for
from medgraft.benchmark.evaluation import Evaluation, evaluated
from medgraft.config import DataConfig
from medgraft.data import load_data
from medgraft.errors import MedgraftError
from medgraft.inference import Inference
from medgraft.plugin import PluginManager
from medgraft.scoring import captions_of
from medgraft.types import Example

_logger = logging.getLogger(__name__)


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
    images, captions = [example.images for example in examples], [example.captions[0] for example in examples]
    longest = loaded.manifest.max_text_tokens if loaded.manifest else 128
    return Quality(inference.mean_loss(images, captions, longest, [example.prompt for example in examples]), cider)


def inference_of(loaded: LoadedAdapter) -> Inference:
    """The adapter ready for captions, in the precision of its training."""
    return Inference(loaded.backbone, prompt_for(loaded.backbone, loaded.prompt), loaded.dtype)


def evaluation(
    inference: Inference, loaded: LoadedAdapter, examples: Sequence[Example], *, plugins: PluginManager
) -> Evaluation:
    """CIDEr of generated captions, with its interval."""
    prompts = [example.prompt for example in examples]
    captions = inference.caption([example.images for example in examples], loaded.generation, prompts).captions
    return evaluated(captions_of(examples, captions), metrics=("cider",), plugins=plugins)
