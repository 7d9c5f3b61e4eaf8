"""A captioning model behind an API: it answers and cannot be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from medgraft.config import GenerationConfig

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Usage:
    """What was asked of an API. `cached` answers cost nothing; `usd` is None where the price is not known.

    `refused` counts answers that the provider blocked: their captions are empty.
    """

    requests: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = None
    refused: int = 0


class RemoteCaptioner(ABC):
    """A model behind an API. `source` names the model."""

    default_source: ClassVar[str | None] = None
    default_prompt: ClassVar[str] = (
        "Describe this medical image in one sentence, as a figure caption in a radiology paper would."
    )

    source: str

    @classmethod
    @abstractmethod
    def load(cls, source: str) -> Self:
        """The client for the model `source`; BackboneError if it cannot be used, with what to set."""

    @classmethod
    @abstractmethod
    def fingerprint(cls, source: str) -> str:
        """Hex digest of what decides the answers as far as it is known: the model's name."""

    @abstractmethod
    def caption(self, images: Sequence[Image], *, prompt: str, options: GenerationConfig) -> list[str]:
        """One caption for each image, in order; answers given before come from a cache."""

    @abstractmethod
    def usage(self) -> Usage:
        """What was asked since `load`."""

    @classmethod
    @abstractmethod
    def estimate(cls, source: str, sizes: Sequence[tuple[int, int]], *, prompt: str, options: GenerationConfig) -> Usage:
        """What captioning images of these sizes (width, height) would take at most; nothing is sent, no key is needed."""
