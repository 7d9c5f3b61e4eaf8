"""Computes several metrics of one set of captions."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medgraft.errors import ConfigError, MedgraftError, first_line
from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, whole
from medgraft.plugin import PluginManager

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """`values` by name, what each metric measured per image, the metrics' signatures, and reasons for missing scores."""

    values: Mapping[str, float]
    measured: Mapping[str, Measured]
    signatures: Mapping[str, str]
    unavailable: Mapping[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the metrics say about their scores, each sentence once."""
        return tuple(dict.fromkeys(note for each in self.measured.values() for note in each.notes))


def measure(captions: CaptionSet, *, metrics: Iterable[str], plugins: PluginManager) -> Scores:
    """All scores of `metrics` for `captions`; one that lacks something or fails is left out with the reason, which is kept."""
    values: dict[str, float] = {}
    measured: dict[str, Measured] = {}
    signatures: dict[str, str] = {}
    unavailable: dict[str, str] = {}
    for name, metric in {name: get_metric(name, plugins) for name in metrics}.items():
        try:
            result = _measured(metric, captions)
        except UnavailableError as error:
            unavailable[name] = str(error)
            continue
        except MedgraftError:
            raise
        except Exception as error:  # a plugin's metric may raise anything, and a finished training must not be lost for it
            unavailable[name] = f"it failed: {first_line(error)}"
            _logger.warning("metric %s %s", name, unavailable[name])
            continue
        if taken := set(result.scores) & (values.keys() | unavailable.keys()):
            unavailable[name] = f"it reports {', '.join(sorted(taken))}, which another metric also reports"
            _logger.warning("metric %s left out: %s", name, unavailable[name])
            continue
        measured[name] = result
        signatures |= {name: metric.signature} if isinstance(metric, CaptionMetric) else {}
        values |= {key: value for key, value in result.scores.items() if math.isfinite(value)}
        reason = "no image has what it measures"
        unavailable |= {key: reason for key, value in result.scores.items() if not math.isfinite(value)}
    return Scores(values, measured, signatures, unavailable)


def get_metric(text: str, plugins: PluginManager) -> Any:
    """The metric `NAME`, or `NAME:SOURCE` for one that takes a model, file or tokenizer as its first parameter."""
    name, _, source = text.partition(":")
    metric = plugins.get("metric", name)
    if source and _first_parameter(metric) in ("config_name", "args", ""):
        raise ConfigError(f"Metric {text!r}: {name!r} takes no model or file. Write {name}.")
    return metric(source) if source else metric()


def with_tokenizer(names: Iterable[str], tokenizer: str, plugins: PluginManager) -> tuple[str, ...]:
    """The names with `tokenizer` behind those of metrics that take one, such as `bleu:whitespace`, unless one is named."""

    def takes(name: str) -> bool:
        return ":" not in name and _first_parameter(plugins.get("metric", name)) == "tokenizer"

    return tuple(f"{name}:{tokenizer}" if takes(name) else name for name in names)


def check_metrics(names: Iterable[str], plugins: PluginManager) -> None:
    """UnknownNameError or ConfigError for the first of `names` that is no metric; cheap, and before anything is trained."""
    for name in names:
        get_metric(name, plugins)


def _first_parameter(metric: Any) -> str:
    return next(iter(inspect.signature(metric).parameters), "")


def _measured(metric: Any, captions: CaptionSet) -> Measured:
    if isinstance(metric, CaptionMetric):
        return metric.checked(captions)
    import evaluate

    if isinstance(metric, evaluate.EvaluationModule):
        metric.keep_in_memory = True  # a file of its own is locked, and one that fails does not unlock it
    found: Mapping[str, Any] = metric.compute(
        predictions=list(captions.predictions), references=[list(texts) for texts in captions.references]
    )
    return whole({name: float(value) for name, value in found.items() if _is_number(value)}, len(captions.predictions))


def _is_number(value: Any) -> bool:
    """Whether it is a score, and not a list of single images' scores or a text about the settings."""
    return np.ndim(value) == 0 and not isinstance(value, str) and value is not None
