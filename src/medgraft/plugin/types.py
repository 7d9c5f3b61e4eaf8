"""Descriptors that plugins provide: frozen dataclasses with a name and the location of the code."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medgraft.errors import PluginError, first_line


@dataclass(frozen=True)
class Spec:
    """A name, a one-line summary, and the code: an object, or `"module:attribute"`, imported on first use."""

    name: str
    summary: str
    target: Any

    def resolve(self) -> Any:
        """The object behind `target`; raises PluginError if it cannot be imported."""
        return _import(self.name, self.target)


@dataclass(frozen=True)
class BackboneSpec(Spec):
    """`target`: a subclass of `medgraft.plugin_api.Backbone`, or of `RemoteCaptioner` for a model behind an API.

    `tiny` maps names to functions, objects or `"module:attribute"`, that write a small random model of this kind into a folder.
    Checks and tests use these models where no weights are available.
    `remote` says that images are sent to a server; such a backbone is never suggested for a name that is not known.
    `families` begin the names of the models that it takes, as "llava"; it is suggested for an unknown name that begins so.
    """

    tiny: Mapping[str, Any] = field(default_factory=dict)
    remote: bool = False
    families: tuple[str, ...] = ()

    def write_tiny(self, name: str, folder: Path) -> Path:
        """Write the tiny model `name` into `folder`, and return `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        _import(name, self.tiny[name])(folder)
        return folder


@dataclass(frozen=True)
class StrategySpec(Spec):
    """`target`: a `medgraft.plugin_api.Strategy`."""


@dataclass(frozen=True)
class DatasetSpec(Spec):
    """`target`: a subclass of `medgraft.plugin_api.Dataset`."""


@dataclass(frozen=True)
class ScoreSpec:
    """A number that a metric reports as `name`: one line on what it is, and whether a higher or a lower one is better.

    `better` None: neither, so it is shown and never called better. `label` heads its column (default: the name). `detail`
    leaves it out of the short tables of terminal and Markdown. `controls` are names of scores of the same metric that show
    what chance gives, with what they are; they stand beside this score and in no column.
    """

    name: str
    summary: str
    better: Literal["higher", "lower"] | None = "higher"
    label: str = ""
    detail: bool = False
    controls: Mapping[str, str] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """The head of its column."""
        return self.label or self.name

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is, 0 if neither."""
        return 0 if self.better is None else 1 if self.better == "higher" else -1

    @property
    def explanation(self) -> str:
        """What it is, and which direction is better."""
        return f"{self.summary}; {self.better or 'neither direction'} {'is' if self.better else 'counts as'} better"


@dataclass(frozen=True)
class MetricSpec(Spec):
    """`target`: a subclass of `CaptionMetric` or `evaluate.Metric`, whose compute(predictions=, references=) returns numbers.

    `scores` declares these numbers; tables and comparisons take headings, directions and explanations from there.
    """

    scores: tuple[ScoreSpec, ...] = ()


def _import(name: str, target: Any) -> Any:
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing a plugin's module may raise anything
        raise PluginError(f"{name!r} could not be loaded from {target}: {what_failed(error)}") from error


def what_failed(error: BaseException) -> str:
    """The class of an error and what it says, in one line."""
    from pydantic import ValidationError

    from medgraft.strict_model import problems

    if isinstance(error, ValidationError):  # its first line only counts the problems
        return f"{error.title}: {'; '.join(problems(error))}"
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
