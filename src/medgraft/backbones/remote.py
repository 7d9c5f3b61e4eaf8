"""The interface of a captioning model behind an API, which cannot be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from medgraft.config import GenerationConfig
from medgraft.errors import BackboneError
from medgraft.types import Prompts

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Usage:
    """Requests to an API and their cost. `cached` answers cost nothing; `usd` is None if the price is unknown.

    `refused` counts answers that the provider blocked; their captions are empty. `cut_off` counts captions that ended at the
    limit of tokens, cached ones included; None if the API did not say so of every one.
    """

    requests: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = None
    refused: int = 0
    cut_off: int | None = None


class RemoteCaptioner(ABC):
    """A model behind an API. `source` names the model; `generation_settings` are those that it can be asked to follow."""

    default_source: ClassVar[str | None] = None
    default_prompt: ClassVar[str] = (
        "Describe this medical image in one sentence, as a figure caption in a radiology paper would."
    )
    generation_settings: ClassVar[tuple[str, ...]] = ("max_new_tokens",)

    source: str

    @classmethod
    @abstractmethod
    def load(cls, source: str) -> Self:
        """The client for the model `source`; BackboneError tells what to set if it cannot be used."""

    @classmethod
    @abstractmethod
    def fingerprint(cls, source: str) -> str:
        """Hex digest of the model's name, the only known thing that determines its answers."""

    @classmethod
    def check_generation(cls, options: GenerationConfig) -> str | None:
        """A sentence if beam search is asked for, which no API does; BackboneError for other settings that it cannot follow."""
        unable = {name: getattr(options, name) for name in options.changed() if name not in cls.generation_settings}
        given = ", ".join(f"generation.{name}={value}" for name, value in unable.items())
        if unable.keys() <= {"num_beams", "length_penalty"}:
            return f"A model behind an API decodes without beam search: it does not follow {given}." if unable else None
        able = ", ".join(f"generation.{name}" for name in cls.generation_settings)
        raise BackboneError(f"The model behind this API cannot follow {given}. Leave it out; what it can follow: {able}.")

    @abstractmethod
    def caption(self, images: Sequence[Image], *, prompt: Prompts, options: GenerationConfig) -> list[str]:
        """One caption per image, in order, by the prompt or each image's own; repeated requests are answered from a cache."""

    @abstractmethod
    def usage(self) -> Usage:
        """Requests and cost since `load`."""

    @classmethod
    @abstractmethod
    def estimate(cls, source: str, sizes: Sequence[tuple[int, int]], *, prompt: str, options: GenerationConfig) -> Usage:
        """Upper bound of the usage for images of `sizes` (width, height); sends nothing and needs no key."""
