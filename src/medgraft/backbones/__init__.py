"""Captioning models, by name."""

from medgraft.backbones.base import Backbone, TextBatch, next_token_loss
from medgraft.backbones.lookup import (
    AnyBackbone,
    get_backbone,
    get_captioner,
    load_without_weights,
    prompt_for,
    split_name,
)
from medgraft.backbones.remote import RemoteCaptioner, Usage

__all__ = [
    "AnyBackbone", "Backbone", "RemoteCaptioner", "TextBatch", "Usage", "get_backbone", "get_captioner",
    "load_without_weights", "next_token_loss",
    "prompt_for", "split_name",
]  # fmt: skip
