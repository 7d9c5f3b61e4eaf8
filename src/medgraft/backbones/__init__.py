"""Captioning models, by name."""

from medgraft.backbones.base import Backbone, TextBatch
from medgraft.backbones.lookup import get_backbone, split_name

__all__ = ["Backbone", "TextBatch", "get_backbone", "split_name"]
