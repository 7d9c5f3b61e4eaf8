"""What a backbone is: a captioning model with its processor, its anatomy, and the seam where its images end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import nn

from medgraft.config import GenerationConfig
from medgraft.types import Anatomy, Seam

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BitsAndBytesConfig


@dataclass(frozen=True)
class TextBatch:
    """Captions as the decoder reads them, each [B, T]; `labels` carry -100 where nothing is to be predicted."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


class Backbone(ABC):
    """A captioning model. The forward pass is cut at `seam`: `encode` is below it, `decode` and `generate` above.

    Strategies change `model` in place, so that `encode` and `decode` reach its layers through `self.model`.
    """

    anatomy: ClassVar[Anatomy]
    seam: ClassVar[Seam]
    never_quantized: ClassVar[tuple[str, ...]] = ()
    default_source: ClassVar[str | None] = None

    model: nn.Module
    source: str

    @classmethod
    @abstractmethod
    def load(cls, source: str, *, quantization: BitsAndBytesConfig | None = None) -> Self:
        """The model from a hub id or folder, in eval mode on the CPU; BackboneError if the weights are not of this kind."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the base weights; the same for every file layout and every quantisation of them."""

    @abstractmethod
    def pixel_values(self, images: Sequence[Image]) -> torch.Tensor:
        """RGB images of any size as the model's input [B, 3, H, W]."""

    @abstractmethod
    def text_batch(self, captions: Sequence[str], *, prompt: str, max_tokens: int) -> TextBatch:
        """Captions behind the prompt, cut to `max_tokens`, padded to the longest."""

    @abstractmethod
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features at the seam, [B, S, C]."""

    @abstractmethod
    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean loss over the labels that are not -100, logits [B, T, V])."""

    @abstractmethod
    def generate(self, features: torch.Tensor, *, prompt: str, options: GenerationConfig) -> list[str]:
        """One caption for each row of `features`, without the prompt."""
