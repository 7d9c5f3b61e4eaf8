"""The metrics of a task: the task belongs to the data, so their reader names them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from medgraft.config import DataConfig, RunSettings
from medgraft.plugin import PluginManager

_S = TypeVar("_S", bound=RunSettings)


def with_task_metrics(settings: _S, data: Iterable[DataConfig], added: Sequence[str] = (), *, plugins: PluginManager) -> _S:
    """`settings` with the metrics of the tasks of `data`, where they name none, and with those `added`, each once.

    An added name with another source takes the place of the plain one. UnknownNameError for data without a reader.
    """
    known = settings.metrics or tuple(dict.fromkeys(m for each in data for m in plugins.get("dataset", each.name).metrics))
    named = [name.partition(":")[0] for name in added]
    metrics = (*(name for name in known if name.partition(":")[0] not in named), *dict.fromkeys(added))
    return settings if metrics == settings.metrics else settings.model_copy(update={"metrics": metrics})
