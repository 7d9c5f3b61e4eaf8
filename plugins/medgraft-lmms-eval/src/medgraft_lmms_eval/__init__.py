"""Adapters of medgraft as a model of lmms-eval, which finds it by the entry point `lmms_eval.models`."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The ModelManifest of `--model medgraft`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="medgraft", simple_class_path="medgraft_lmms_eval.model.Medgraft")
