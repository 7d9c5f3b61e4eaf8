"""Captioning a split and scoring it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medgraft.adapter import LoadedAdapter
from medgraft.backbones import Backbone, RemoteCaptioner
from medgraft.captioning import caption_images
from medgraft.config import GenerationConfig
from medgraft.features import FeatureSupply
from medgraft.metrics import score
from medgraft.plugin import PluginManager
from medgraft.training import Clock
from medgraft.types import Example


@dataclass(frozen=True)
class Evaluation:
    """What was said of each image, and the scores of all of it."""

    predictions: Mapping[str, str]
    references: Mapping[str, tuple[str, ...]]
    metrics: Mapping[str, float]


def evaluate_examples(
    backbone: Backbone | RemoteCaptioner,
    examples: tuple[Example, ...],
    *,
    generation: GenerationConfig,
    prompt: str | None,
    metrics: tuple[str, ...],
    batch_size: int,
    bf16: bool,
    plugins: PluginManager,
    clock: Clock,
    progress: bool,
    supply: FeatureSupply | None = None,
) -> Evaluation:
    """Caption `examples` with `backbone` as it stands, and score the captions."""
    with clock.phase("generation"):
        paths = [example.image for example in examples]
        captions = caption_images(
            backbone, paths, options=generation, prompt=prompt, batch_size=batch_size, bf16=bf16, progress=progress,
            supply=supply,
        )  # fmt: skip
    predictions = {example.id: caption for example, caption in zip(examples, captions, strict=True)}
    references = {example.id: tuple(c for c in example.captions if c) for example in examples}
    with clock.phase("scoring"):
        numbers = score(predictions, references, metrics=metrics, plugins=plugins)
    return Evaluation(predictions, references, numbers)


def generation_of(adapter: LoadedAdapter) -> GenerationConfig:
    """The decoding that an adapter was evaluated with."""
    stored = adapter.manifest.evaluation.get("generation") if adapter.manifest else None
    return GenerationConfig(**stored) if stored else GenerationConfig()
