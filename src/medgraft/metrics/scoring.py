"""Computes several metrics of one set of captions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medgraft.errors import ConfigError, PluginError
from medgraft.metrics.base import CaptionMetric, CaptionSet, Measured, UnavailableError
from medgraft.plugin import PluginManager

LESS_IS_BETTER = ("side_contradicted", "side_omitted", "unsupported_measurement", "deletion")


@dataclass(frozen=True)
class Scores:
    """`values` by name, what each metric measured per image, the metrics' signatures, and reasons for missing scores."""

    values: Mapping[str, float]
    measured: Mapping[str, Measured]
    signatures: Mapping[str, str]
    unavailable: Mapping[str, str]


def measure(captions: CaptionSet, *, metrics: Iterable[str], plugins: PluginManager) -> Scores:
    """All scores of `metrics` for `captions`; a metric that lacks something is left out with the reason."""
    values: dict[str, float] = {}
    measured: dict[str, Measured] = {}
    signatures: dict[str, str] = {}
    unavailable: dict[str, str] = {}
    for name, metric in {name: get_metric(name, plugins) for name in metrics}.items():
        try:
            result = _result(metric, captions, name, measured, signatures)
        except UnavailableError as error:
            unavailable[name] = str(error)
            continue
        if taken := set(result) & set(values):
            raise PluginError(f"Metric {name!r} reports {', '.join(taken)}, which another metric also reports.")
        values |= {key: float(value) for key, value in result.items() if math.isfinite(value)}
        unavailable |= {key: "no image has what it measures" for key, value in result.items() if not math.isfinite(value)}
    return Scores(values, measured, signatures, unavailable)


def get_metric(text: str, plugins: PluginManager) -> Any:
    """The metric `NAME`, or `NAME:SOURCE` for one that takes a model or file as its first parameter."""
    name, _, source = text.partition(":")
    metric = plugins.get("metric", name)
    if source and next(iter(inspect.signature(metric).parameters.values())).name in ("config_name", "args"):
        raise ConfigError(f"Metric {text!r}: {name!r} takes no model or file. Write {name}.")
    return metric(source) if source else metric()


def _result(
    metric: Any, captions: CaptionSet, name: str, measured: dict[str, Measured], signatures: dict[str, str]
) -> Mapping[str, float]:
    if isinstance(metric, CaptionMetric):
        measured[name], signatures[name] = metric.measure(captions), metric.signature
        return measured[name].scores
    result: Mapping[str, float] = metric.compute(
        predictions=list(captions.predictions), references=[list(texts) for texts in captions.references]
    )
    return result
