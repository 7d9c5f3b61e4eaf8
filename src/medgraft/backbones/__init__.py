"""Captioning models, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.lazy import lazily

if TYPE_CHECKING:
    from medgraft.backbones.base import Backbone
    from medgraft.backbones.lookup import AnyBackbone, get_backbone, get_captioner, load_without_weights, prompt_for, split_name
    from medgraft.backbones.remote import RemoteCaptioner, Usage
    from medgraft.backbones.text_batch import TextBatch, next_token_loss
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "AnyBackbone", "Backbone", "RemoteCaptioner", "TextBatch", "Usage", "get_backbone", "get_captioner", "load_without_weights",
    "next_token_loss", "prompt_for", "split_name",
]  # fmt: skip
