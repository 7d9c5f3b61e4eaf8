"""Captioning a split and scoring it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medgraft import hardware
from medgraft.adapter import LoadedAdapter
from medgraft.backbones import Backbone, RemoteCaptioner, prompt_for
from medgraft.benchmark.captions import RunCaptions, captions_of, collapse, shuffled
from medgraft.captioning import caption_images
from medgraft.config import SALIENCY_METRICS, GenerationConfig, SaliencyConfig
from medgraft.features import CachedFeatures
from medgraft.metrics import Scores, measure
from medgraft.plugin import PluginManager
from medgraft.saliency import SaliencyResult, score_saliency
from medgraft.stats import Interval, Resampling
from medgraft.training import Clock
from medgraft.types import Example


@dataclass(frozen=True)
class Evaluation:
    """What was said of each image, the scores of all of it with their intervals, and signs of captions that ignore the image.

    `collapse` holds, beside what `captions.collapse` counts, every score with each caption given to another image
    (`shuffled_NAME`). `maps` are packed attention maps by image id. `peak_memory_bytes` is
    that of training and captioning, before maps were drawn.
    """

    captions: RunCaptions
    scores: Scores
    intervals: Mapping[str, Interval]
    collapse: Mapping[str, float]
    maps: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    peak_memory_bytes: int | None = None

    @property
    def predictions(self) -> Mapping[str, str]:
        """Captions by image id."""
        return self.captions.predictions

    @property
    def references(self) -> Mapping[str, tuple[str, ...]]:
        """Reference captions by image id."""
        return self.captions.references

    def for_record(self) -> dict[str, Any]:
        """The fields of a Record that tell of it."""
        return {
            "metrics": dict(self.scores.values),
            "intervals": {name: (interval.low, interval.high) for name, interval in self.intervals.items()},
            "collapse": dict(self.collapse),
            "signatures": dict(self.scores.signatures),
            "unavailable": dict(self.scores.unavailable),
        }

    @property
    def metrics(self) -> Mapping[str, float]:
        """Every score by name."""
        return self.scores.values


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
    saliency: SaliencyConfig,
    cached: CachedFeatures | None = None,
) -> Evaluation:
    """Caption `examples` with `backbone` as it stands, look where it looks, and score both."""
    with clock.phase("generation"):
        paths = [example.image for example in examples]
        said = caption_images(
            backbone, paths, options=generation, prompt=prompt, batch_size=batch_size, bf16=bf16, progress=progress,
            cached=cached,
        )  # fmt: skip
    peak = hardware.peak_memory_bytes()
    with clock.phase("saliency"):
        found_saliency, obstacle = _look(
            backbone, examples, said, prompt, metrics, bf16, batch_size, saliency, cached, progress
        )
    with clock.phase("scoring"):
        found = evaluated(captions_of(examples, said, found_saliency.scores), metrics=metrics, plugins=plugins)
    reasons = dict(found.scores.unavailable) | {name: obstacle for name in SALIENCY_METRICS if name in metrics and obstacle}
    scores = replace(found.scores, unavailable=reasons)
    return replace(found, maps=found_saliency.maps, scores=scores, peak_memory_bytes=peak)


def _look(
    backbone: Backbone | RemoteCaptioner, examples: tuple[Example, ...], said: list[str], prompt: str | None,
    metrics: tuple[str, ...], bf16: bool, batch_size: int, saliency: SaliencyConfig, cached: CachedFeatures | None,
    progress: bool,
) -> tuple[SaliencyResult, str | None]:  # fmt: skip
    """Where the model found_saliency, as far as `metrics` and the report ask; and why it cannot be known, if so."""
    if isinstance(backbone, RemoteCaptioner):
        return SaliencyResult({}, {}), "a model behind an API shows no attention"
    try:
        return score_saliency(
            backbone, examples, {example.id: caption for example, caption in zip(examples, said, strict=True)},
            prompt=prompt_for(backbone, prompt), bf16=bf16, batch_size=batch_size, pointing="localization" in metrics,
            curves=saliency.curves if "faithfulness" in metrics else 0, kept=saliency.maps, cached=cached, progress=progress,
        ), None  # fmt: skip
    except Exception as error:  # out of memory, say: a run that is trained and has spoken is not lost for its maps
        return SaliencyResult({}, {}), str(error).splitlines()[0] if str(error) else type(error).__name__


def evaluated(captions: RunCaptions, *, metrics: tuple[str, ...], plugins: PluginManager) -> Evaluation:
    """Scores of `captions` with 95 % intervals over groups, where a metric tells what it measured of every image."""
    scores = measure(captions.caption_set(), metrics=metrics, plugins=plugins)
    resampling = Resampling(captions.group_names())
    intervals = {
        name: interval
        for measured in scores.measured.values()
        for name, interval in resampling.intervals(measured).items()
        if name in scores.values
    }
    signs = collapse(captions)
    if len(captions.ids) > 1:
        others = measure(shuffled(captions).caption_set(), metrics=metrics, plugins=plugins).values
        signs |= {f"shuffled_{name}": value for name, value in others.items()}
    return Evaluation(captions, scores, intervals, signs)


def generation_of(adapter: LoadedAdapter) -> GenerationConfig:
    """The decoding that an adapter was evaluated with."""
    stored = adapter.manifest.evaluation.get("generation") if adapter.manifest else None
    return GenerationConfig(**stored) if stored else GenerationConfig()
