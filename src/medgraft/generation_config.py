"""Settings of how captions are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from medgraft.strict_model import StrictModel, validated

SAMPLING = ("temperature", "top_k", "top_p")  # settings that only sampling reads
_ADDED = ("min_new_tokens", "num_return_sequences", "do_sample", *SAMPLING, "seed")  # since the first records


class GenerationConfig(StrictModel):
    """Decoding of captions, under the names of transformers' GenerationConfig; greedy by default.

    With beam search the first of `num_return_sequences` captions is the most likely one. The first is scored and explained.
    """

    max_new_tokens: int = Field(
        default=96, gt=0, le=100_000, description="maximum caption length in tokens, without the prompt"
    )
    min_new_tokens: int = Field(default=0, ge=0, le=100_000, description="minimum caption length in tokens")
    num_beams: int = Field(default=1, gt=0, le=1000, description="number of beams in beam search; 1: greedy, or plain sampling")
    num_return_sequences: int = Field(
        default=1, gt=0, le=1000, description="captions of each image: the best beams, or samples; only the first is scored"
    )
    do_sample: bool = Field(default=False, description="draw each token at random from the model's probabilities")
    temperature: float = Field(default=1.0, gt=0, le=100, description="for sampling: below 1 favours likely tokens")
    top_k: int = Field(default=0, ge=0, le=1_000_000, description="for sampling: only the top_k likeliest tokens; 0: all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="for sampling: only the likeliest tokens that make up this probability"
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63,
        description="for sampling: the same seed, images, order and batch size give the same captions",
    )  # fmt: skip
    length_penalty: float = Field(default=1.0, ge=-100, le=100, description="for beam search: above 0 favours longer captions")
    no_repeat_ngram_size: int = Field(default=0, ge=0, le=1000, description="no n-gram of this size occurs twice; 0 allows all")
    repetition_penalty: float = Field(default=1.0, gt=0, le=100, description="above 1 makes repeated tokens less likely")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}")
        if not self.do_sample and (unread := self.changed(SAMPLING)):
            given = ", ".join(f"{name}={getattr(self, name)}" for name in unread)
            raise ValueError(f"{given} acts on sampling alone; add generation.do_sample=true, or leave it out")
        several = self.num_return_sequences
        if several > self.num_beams and (self.num_beams > 1 or not self.do_sample):
            advice = f"generation.num_beams={several}" + ("" if self.do_sample else ", or generation.do_sample=true")
            raise ValueError(f"num_return_sequences={several} is more than num_beams={self.num_beams}; set {advice}")
        return self

    @property
    def unread(self) -> str | None:
        """A sentence if a setting has no effect; None otherwise. It is no error, since earlier versions took such settings."""
        if self.num_beams > 1 or self.length_penalty == 1:
            return None
        return f"generation.length_penalty={self.length_penalty} acts on beam search alone; set generation.num_beams too."

    def changed(self, names: tuple[str, ...] | None = None) -> list[str]:
        """Which of `names`, by default of all settings, are not at their defaults."""
        fields = type(self).model_fields
        return [name for name in names or fields if getattr(self, name) != fields[name].default]

    def single(self) -> Self:
        """The settings without sampling, for one caption of each image."""
        plain = {name: type(self).model_fields[name].default for name in ("num_return_sequences", "do_sample", *SAMPLING)}
        return self.model_copy(update=plain)

    def recorded(self) -> dict[str, Any]:
        """The settings as manifests and the ids of records have them: those that earlier versions lack only if changed."""
        return self.model_dump(exclude=set(_ADDED) - set(self.changed()))

    def overridden(self, changes: Mapping[str, Any]) -> Self:
        """The settings with `changes`, without those of sampling where it is switched off. ConfigError names every problem."""
        on = str(changes.get("do_sample", self.do_sample)).lower() in ("true", "1", "yes", "on")
        own = self.model_dump(exclude=set() if on else {"do_sample", *SAMPLING})
        return validated(type(self), own | dict(changes), "generation")
