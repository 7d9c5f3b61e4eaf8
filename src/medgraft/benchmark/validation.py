"""Captions validation images during training, and scores the captions, to find the best weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from medgraft.benchmark.evaluation import caption_examples
from medgraft.config import SALIENCY_METRICS, RunConfig
from medgraft.errors import ConfigError, suggestion
from medgraft.inference import Captioner
from medgraft.metrics import measure
from medgraft.plugin import KnownScores, PluginManager
from medgraft.progress import progress_bars
from medgraft.scoring import captions_of
from medgraft.training import LOSS, Best, validation_examples
from medgraft.types import CaptionData, Example

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """The score `by` of `metric` on `examples`; without a metric it is the loss."""

    config: RunConfig
    examples: Sequence[Example]
    by: str
    metric: str | None
    plugins: PluginManager

    @classmethod
    def of(cls, config: RunConfig, data: CaptionData, plugins: PluginManager) -> Validation | None:
        """What `train.best_by` asks for; ConfigError if there are no validation images or no such score of them."""
        by = config.train.best_by
        if by is None:
            return None
        examples = validation_examples(config, data)
        if not examples:
            raise ConfigError(
                f"train.best_by={by} needs validation images, and {config.data.name}:{config.data.path} has none. "
                "Give the data a validation split, or leave best_by out."
            )
        if config.eval_split == "validation":
            _logger.warning("The weights are chosen by validation images, so their scores on these are too good.")
        score, metric = (by, None) if by == LOSS else _found(by, config, examples, plugins)
        if metric is not None and not KnownScores(plugins)[score].sign:
            raise ConfigError(
                f"train.best_by is {score}, and metric {metric!r} does not declare whether more of it is better. Its plugin "
                "does that by MetricSpec(scores=...); or choose by another score."
            )
        return cls(config, examples, score, metric, plugins)

    def best(self, captioner: Captioner) -> Best:
        """The best weights of a training whose model `captioner` captions with."""
        train = self.config.train
        less = self.by == LOSS or KnownScores(self.plugins)[self.by].sign < 0
        return Best(self.by, less, train.patience, partial(self._scores, captioner) if self.metric else None)

    def _scores(self, captioner: Captioner) -> Mapping[str, float]:
        assert self.metric is not None
        with progress_bars(False):
            done = caption_examples(captioner, self.examples, self.config.generation)
        captions = captions_of(done.examples, done.generated.captions).caption_set()
        return measure(captions, metrics=(self.metric,), plugins=self.plugins).values


def _found(by: str, config: RunConfig, examples: Sequence[Example], plugins: PluginManager) -> tuple[str, str]:
    """The score that `by` names, a score or a metric with one score, and its metric: by scoring references as captions."""
    known = plugins.names("metric")
    named = (
        (by,) if by.partition(":")[0] in known else (*config.metrics, *(name for name in known if by.startswith(f"{name}_")))
    )
    captions = captions_of(examples, [next(filter(None, each.captions), "") for each in examples]).caption_set()
    available: list[str] = []
    reasons: dict[str, str] = {}
    for metric in dict.fromkeys(name for name in named if name not in SALIENCY_METRICS):
        found = measure(captions, metrics=(metric,), plugins=plugins)
        scores = [name for name, value in found.values.items() if math.isfinite(value)]
        if by in scores or (metric == by and len(scores) == 1):
            return (by if by in scores else scores[0]), metric
        available += scores
        reasons |= found.unavailable
    why = f" ({reasons[by]})" if by in reasons else suggestion(by, (*available, LOSS))
    shown = ", ".join(dict.fromkeys((LOSS, *available)))
    raise ConfigError(f"train.best_by is {by!r}, which is no score of the validation captions{why}. Available: {shown}.")
