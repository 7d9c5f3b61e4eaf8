"""The public API for plugins. Everything else in medgraft is internal and may change without notice.

`docs/plugins.md` describes every name in one line. Importing this module is cheap: each name loads its own module on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgraft.backbones import Backbone, RemoteCaptioner, TextBatch, Usage, next_token_loss
    from medgraft.backbones.blip import BlipBackbone
    from medgraft.backbones.blip2 import Blip2Backbone
    from medgraft.backbones.instructblip import InstructBlipBackbone
    from medgraft.backbones.roles import language_model_roles, vision_tower_roles
    from medgraft.backbones.text_batch import padded
    from medgraft.backbones.vision_encoder_decoder import VisionEncoderDecoderBackbone
    from medgraft.backbones.wordpieces import join_punctuation
    from medgraft.config import GenerationConfig
    from medgraft.data import Dataset, clean_caption, open_image
    from medgraft.errors import BackboneError, ConfigError, DataError, MedgraftError, ScoringError, StrategyError
    from medgraft.metrics import CaptionMetric, CaptionSet, Measured, UnavailableError, means, ratios
    from medgraft.plugin import BackboneSpec, DatasetSpec, MetricSpec, PluginManager, ScoreSpec, StrategySpec, hookimpl
    from medgraft.strategies import PartPlan, Strategy, get_strategy
    from medgraft.testing import ConformanceError, check_backbone, check_dataset, check_metric, check_strategy
    from medgraft.testing.tiny import byte_tokenizer, character_tokenizer, save_pretrained, write_tiny_model
    from medgraft.types import Anatomy, AttentionLayout, Example, Part, PartAnatomy, Role, Seam, Split

__all__ = [
    "Anatomy",
    "AttentionLayout",
    "Backbone",
    "BackboneError",
    "BackboneSpec",
    "Blip2Backbone",
    "BlipBackbone",
    "CaptionMetric",
    "CaptionSet",
    "ConfigError",
    "ConformanceError",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "Example",
    "GenerationConfig",
    "InstructBlipBackbone",
    "Measured",
    "MedgraftError",
    "MetricSpec",
    "Part",
    "PartAnatomy",
    "PartPlan",
    "PluginManager",
    "RemoteCaptioner",
    "Role",
    "ScoreSpec",
    "ScoringError",
    "Seam",
    "Split",
    "Strategy",
    "StrategyError",
    "StrategySpec",
    "TextBatch",
    "UnavailableError",
    "Usage",
    "VisionEncoderDecoderBackbone",
    "byte_tokenizer",
    "character_tokenizer",
    "check_backbone",
    "check_dataset",
    "check_metric",
    "check_strategy",
    "clean_caption",
    "get_strategy",
    "hookimpl",
    "join_punctuation",
    "language_model_roles",
    "means",
    "next_token_loss",
    "open_image",
    "padded",
    "ratios",
    "save_pretrained",
    "vision_tower_roles",
    "write_tiny_model",
]

_MODULES = {
    "medgraft.backbones": ("Backbone", "RemoteCaptioner", "TextBatch", "Usage", "next_token_loss"),
    "medgraft.backbones.text_batch": ("padded",),
    "medgraft.backbones.blip": ("BlipBackbone",),
    "medgraft.backbones.blip2": ("Blip2Backbone",),
    "medgraft.backbones.instructblip": ("InstructBlipBackbone",),
    "medgraft.backbones.roles": ("language_model_roles", "vision_tower_roles"),
    "medgraft.backbones.vision_encoder_decoder": ("VisionEncoderDecoderBackbone",),
    "medgraft.backbones.wordpieces": ("join_punctuation",),
    "medgraft.config": ("GenerationConfig",),
    "medgraft.data": ("Dataset", "clean_caption", "open_image"),
    "medgraft.errors": ("BackboneError", "ConfigError", "DataError", "MedgraftError", "ScoringError", "StrategyError"),
    "medgraft.metrics": ("CaptionMetric", "CaptionSet", "Measured", "UnavailableError", "means", "ratios"),
    "medgraft.plugin": ("BackboneSpec", "DatasetSpec", "MetricSpec", "PluginManager", "ScoreSpec", "StrategySpec", "hookimpl"),
    "medgraft.strategies": ("PartPlan", "Strategy", "get_strategy"),
    "medgraft.testing": ("ConformanceError", "check_backbone", "check_dataset", "check_metric", "check_strategy"),
    "medgraft.testing.tiny": ("byte_tokenizer", "character_tokenizer", "save_pretrained", "write_tiny_model"),
    "medgraft.types": ("Anatomy", "AttentionLayout", "Example", "Part", "PartAnatomy", "Role", "Seam", "Split"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'medgraft.plugin_api' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
