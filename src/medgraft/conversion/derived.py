"""Packages that are made from other packages, without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medgraft import hardware
from medgraft.adapter import LoadedAdapter, Manifest
from medgraft.adapter.base_weights import packed
from medgraft.adapter.manifest import Conversion
from medgraft.backbones import prompt_for
from medgraft.strategies import Applied, PartPlan, Strategy

_NAMES = {"combine": "combined", "extract": "low-rank"}


def manifest_of(loaded: LoadedAdapter) -> Manifest:
    """The adapter's manifest, or one with what is known of a plain PEFT adapter."""
    backbone = loaded.backbone
    described = {
        "base_fingerprint": backbone.fingerprint(backbone.source),
        "base_tensors": packed(backbone.checkpoint_digests(backbone.source)),
    }
    if loaded.manifest is not None:
        return loaded.manifest.model_copy(update=described)
    model: Any = loaded.model
    adapter, method = PartPlan(mode="adapter"), model.active_peft_config.peft_type.value
    return Manifest(
        backbone=loaded.base, strategy="peft",
        strategy_settings=Strategy(vision=adapter, bridge=adapter, text=adapter, method=method),
        data={"name": "unknown"}, prompt=prompt_for(backbone, None), max_text_tokens=128, dtype="fp32", acceleration=(), seed=0,
        training={"parts": list(backbone.anatomy.parts), "model_class": backbone.model_class},
        metrics={}, evaluation={}, versions={}, files={}, **described,
    )  # fmt: skip


def derived(source: Manifest, conversion: Conversion, strategy: Strategy, training: Mapping[str, Any]) -> Manifest:
    """A manifest like `source` for what `conversion` made of it: other settings and `training`, and no scores."""
    generation = source.evaluation.get("generation")
    return source.model_copy(
        update={
            "strategy": f"{source.strategy}-{_NAMES[conversion.action]}",
            "strategy_settings": strategy,
            "training": dict(training),
            "metrics": {},
            "evaluation": {"generation": generation} if generation else {},
            "versions": hardware.versions(),
            "conversion": conversion,
        }
    )


def applied(strategy: Strategy, model: Any, direct: tuple[str, ...] = ()) -> Applied:
    """What `save_weights` takes, for a `model` that was made without training; `direct`: changed parameters of the base."""
    return Applied(
        strategy=strategy, model=model, matched_modules=(), quantized=(), direct=direct, adapter_parameters=(),
        frozen_parts=(), trainable_parameters=0, total_parameters=0,
    )  # fmt: skip
