"""What plugins hand over: frozen descriptors that name a thing and say where its code is."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from medgraft.errors import PluginError


@dataclass(frozen=True)
class Spec:
    """A name, one line about it, and its code: an object, or `"module:attribute"` that is imported on first use."""

    name: str
    summary: str
    target: Any

    def resolve(self) -> Any:
        """The object behind `target`; raises PluginError if it cannot be imported."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(f"{self.name!r} could not be loaded from {self.target}: {_first_line(error)}") from error


@dataclass(frozen=True)
class BackboneSpec(Spec):
    """`target`: a subclass of `medgraft.backbones.Backbone`."""


@dataclass(frozen=True)
class StrategySpec(Spec):
    """`target`: a `medgraft.strategies.Strategy`."""


@dataclass(frozen=True)
class DatasetSpec(Spec):
    """`target`: a subclass of `medgraft.data.Dataset`."""


@dataclass(frozen=True)
class MetricSpec(Spec):
    """`target`: a subclass of `evaluate.Metric` whose compute(predictions=, references=) returns named numbers."""


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
