"""The hooks. A plugin implements some and registers its module under the entry-point group `medgraft`."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from medgraft.plugin.types import BackboneSpec, DatasetSpec, MetricSpec, StrategySpec

GROUP = "medgraft"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def medgraft_backbones() -> Iterable[BackboneSpec]:
    """Provide captioning models.

    Example::

        @medgraft.hookimpl
        def medgraft_backbones():
            yield medgraft.BackboneSpec("git", "GIT, a decoder that reads image tokens", "medgraft_git:GitBackbone")
    """
    return ()


@hookspec
def medgraft_strategies() -> Iterable[StrategySpec]:
    """Provide ways of training.

    Example::

        @medgraft.hookimpl
        def medgraft_strategies():
            yield medgraft.StrategySpec("lora-cross", "LoRA on cross-attention only", "my_plugin:LORA_CROSS")
    """
    return ()


@hookspec
def medgraft_datasets() -> Iterable[DatasetSpec]:
    """Provide data sets.

    Example::

        @medgraft.hookimpl
        def medgraft_datasets():
            yield medgraft.DatasetSpec("iu-xray", "Indiana University chest X-rays", "my_plugin:IuXray")
    """
    return ()


@hookspec
def medgraft_metrics() -> Iterable[MetricSpec]:
    """Provide metrics.

    Example::

        @medgraft.hookimpl
        def medgraft_metrics():
            score = medgraft.ScoreSpec("length", "mean caption length in words", better=None)
            yield medgraft.MetricSpec("length", "Caption lengths", "my_plugin:Length", (score,))
    """
    return ()
