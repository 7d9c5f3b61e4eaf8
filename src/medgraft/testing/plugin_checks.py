"""Checks everything that an installed plugin provides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from medgraft.backbones import Backbone
from medgraft.benchmark import why_unsupported
from medgraft.config import DataConfig
from medgraft.errors import UnknownNameError, suggestion
from medgraft.plugin import BackboneSpec, Kind, PluginInfo, PluginManager, Spec
from medgraft.strategies import get_strategy
from medgraft.testing.backbone_checks import backbone_findings
from medgraft.testing.data_checks import dataset_findings, metric_findings
from medgraft.testing.findings import Finding
from medgraft.testing.strategy_checks import strategy_findings

_STRATEGY_BACKBONE = "blip"  # on which a plugin's strategies are checked


def plugin_findings(
    name: str, *, plugins: PluginManager, source: str | None = None, data: DataConfig | None = None
) -> Iterator[Finding]:
    """The results of all checks of the plugin or distribution `name`.

    Backbones are checked with their tiny models, or with the weights in `source`; data sets on `data`.
    """
    plugin = _find(name, plugins)
    for kind, names in plugin.provides.items():
        for provided in names:
            spec = _spec(kind, provided, plugins)
            if kind == "backbone":
                yield from _backbone(spec, source, plugins)
            elif kind == "strategy":
                yield from _strategy(provided, plugins)
            elif kind == "dataset":
                yield from _dataset(spec, data)
            else:
                yield from metric_findings(spec.resolve())


def _find(name: str, plugins: PluginManager) -> PluginInfo:
    loaded = plugins.plugins()
    for failure in plugins.failures:
        if name in (failure.plugin, failure.distribution):
            raise UnknownNameError(f"Plugin {failure.plugin} ({failure.distribution}) failed to load: {failure.message}")
    for info in loaded:
        if name in (info.plugin, info.distribution):
            return info
    known = [info.plugin for info in loaded]
    raise UnknownNameError(f"No plugin {name!r} is installed.{suggestion(name, known)} Installed: {', '.join(known)}.")


def _spec(kind: Kind, name: str, plugins: PluginManager) -> Spec:
    return next(spec for spec, _ in plugins.specs(kind) if spec.name == name)


def _backbone(spec: Spec, source: str | None, plugins: PluginManager) -> Iterator[Finding]:
    backbone_class = spec.resolve()
    assert isinstance(spec, BackboneSpec)
    if not (isinstance(backbone_class, type) and issubclass(backbone_class, Backbone)):
        yield Finding(spec.name, "is behind an API: it cannot be checked without sending images")
        return
    with TemporaryDirectory() as folder:
        own = [backbone_class.default_source] if backbone_class.default_source and not spec.tiny else []
        tiny = own if source is None else [source]
        if source is None:
            tiny += [str(spec.write_tiny(name, Path(folder) / name)) for name in spec.tiny]
        if not tiny:
            yield Finding(spec.name, "has a model for the checks", "name one: --source HUB_ID or FOLDER")
        for model in tiny:
            yield from backbone_findings(backbone_class, model)
            for strategy in plugins.names("strategy"):
                plan = get_strategy(strategy, plugins=plugins)
                if why_unsupported(f"{spec.name}:{model}", plan, plugins=plugins) is None:
                    yield from strategy_findings(plan, f"{spec.name}:{model}", plugins=plugins, name=strategy)


def _strategy(name: str, plugins: PluginManager) -> Iterator[Finding]:
    spec = _spec("backbone", _STRATEGY_BACKBONE, plugins)
    assert isinstance(spec, BackboneSpec)
    with TemporaryDirectory() as folder:
        source = spec.write_tiny(_STRATEGY_BACKBONE, Path(folder))
        plan = get_strategy(name, plugins=plugins)
        yield from strategy_findings(plan, f"{_STRATEGY_BACKBONE}:{source}", plugins=plugins, name=name)


def _dataset(spec: Spec, data: DataConfig | None) -> Iterator[Finding]:
    if data is None or data.name != spec.name:
        yield Finding(spec.name, "has data for the checks", f"name some: --data {spec.name}:PATH")
        return
    yield from dataset_findings(spec.resolve(), Path(data.path) if data.path else None, data.options)
