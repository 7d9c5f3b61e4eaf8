"""Hooks, descriptors and the plugin manager."""

from medgraft.plugin.known_scores import MAIN_SCORE, KnownScores
from medgraft.plugin.manager import KINDS, Kind, LoadFailure, PluginInfo, PluginManager
from medgraft.plugin.spec import hookimpl, hookspec
from medgraft.plugin.types import BackboneSpec, DatasetSpec, MetricSpec, ScoreSpec, Spec, StrategySpec

__all__ = [
    "KINDS",
    "MAIN_SCORE",
    "BackboneSpec",
    "DatasetSpec",
    "Kind",
    "KnownScores",
    "LoadFailure",
    "MetricSpec",
    "PluginInfo",
    "PluginManager",
    "ScoreSpec",
    "Spec",
    "StrategySpec",
    "hookimpl",
    "hookspec",
]
