"""Captioning models, by name."""

from medgraft.backbones.base import Backbone
from medgraft.backbones.lookup import (
    AnyBackbone,
    get_backbone,
    get_captioner,
    load_without_weights,
    prompt_for,
    split_name,
)
from medgraft.backbones.remote import RemoteCaptioner, Usage
from medgraft.backbones.text_batch import TextBatch, next_token_loss

__all__ = [
    "AnyBackbone", "Backbone", "RemoteCaptioner", "TextBatch", "Usage", "get_backbone", "get_captioner",
    "load_without_weights", "next_token_loss",
    "prompt_for", "split_name",
]  # fmt: skip
