"""Manifests of packages that were made from other packages, without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medgraft import hardware
from medgraft.adapter import LoadedAdapter, Manifest
from medgraft.backbones import prompt_for
from medgraft.strategies import Applied, PartPlan, Strategy


def manifest_of(loaded: LoadedAdapter, backbone: str | None) -> Manifest:
    """The adapter's manifest, or one that says what is known of a plain PEFT adapter on `backbone`."""
    if loaded.manifest is not None:
        return loaded.manifest
    model: Any = loaded.model
    method = next(iter(model.peft_config.values())).peft_type.value
    adapter = PartPlan(mode="adapter")
    training = {
        "steps": 0, "seconds": 0.0, "images": 0, "learning_rate": 0.0, "trainable_parameters": 0, "in_place": 0,
        "parts": list(loaded.backbone.anatomy.parts), "hardware": "unknown hardware", "final_loss": None,
    }  # fmt: skip
    return Manifest(
        backbone=backbone or "", base_fingerprint=loaded.backbone.fingerprint(loaded.backbone.source), strategy="peft",
        strategy_settings=Strategy(vision=adapter, bridge=adapter, text=adapter, method=method),
        data={"name": "unknown", "options": {}}, prompt=prompt_for(loaded.backbone, None), max_text_tokens=128, bf16=False,
        acceleration=(), seed=0, training=training, metrics={}, evaluation={}, versions=hardware.versions(), files={},
    )  # fmt: skip


def derived(source: Manifest, how: str, strategy: Strategy, training: Mapping[str, Any]) -> Manifest:
    """A manifest like `source` with `how` in the strategy's name, other settings, additions to `training` and no scores."""
    generation = source.evaluation.get("generation")
    return source.model_copy(
        update={
            "strategy": f"{source.strategy}-{how}",
            "strategy_settings": strategy,
            "training": {**source.training, **training},
            "metrics": {},
            "evaluation": {"generation": generation} if generation else {},
            "versions": hardware.versions(),
        }
    )


def applied(strategy: Strategy, model: Any, direct: tuple[str, ...] = ()) -> Applied:
    """What `save_weights` takes, for a `model` that was made without training; `direct`: changed parameters of the base."""
    return Applied(
        strategy=strategy, model=model, matched_modules=(), quantized=(), direct=direct, adapter_parameters=(),
        frozen_parts=(), trainable_parameters=0, total_parameters=0,
    )  # fmt: skip
