"""Hooks, descriptors and the plugin manager."""

from medgraft.plugin.manager import KINDS, Kind, LoadFailure, PluginInfo, PluginManager
from medgraft.plugin.spec import hookimpl, hookspec
from medgraft.plugin.types import BackboneSpec, DatasetSpec, MetricSpec, Spec, StrategySpec

__all__ = [
    "KINDS",
    "BackboneSpec",
    "DatasetSpec",
    "Kind",
    "LoadFailure",
    "MetricSpec",
    "PluginInfo",
    "PluginManager",
    "Spec",
    "StrategySpec",
    "hookimpl",
    "hookspec",
]
