"""What training truncates, what a tokenizer does not know, and where generation stops too early; token_counts counts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from medgraft.strict_model import StrictModel

UNKNOWN_SHARE = 0.001  # more unknown tokens than this share of all are worth a warning
LONG_REFERENCES = 0.1  # the same for references that are longer than a generated caption may be
_LIMIT = "generation.max_new_tokens"
_CUT_OFF = (
    "Raise it; if captions repeat themselves, try generation.no_repeat_ngram_size=3 or generation.repetition_penalty=1.2, or "
    "train longer, so that the model learns where a caption ends."
)
_EMPTY = "Try generation.min_new_tokens=5 or another prompt, or train longer or with a lower train.learning_rate."
_EQUAL = (
    "The model may ignore the image: train longer or with another train.learning_rate, or try another prompt; "
    "generation.do_sample=true varies the words, not what is seen."
)
_FEWEST_EQUAL = 3  # images from which on equal captions are worth a warning
_LONGEST_SHOWN = 60  # characters of a caption in a warning


class TextStatistics(StrictModel):
    """Training captions, and the references of the evaluated split, in tokens of a backbone.

    `longer` of the training `captions` are truncated: prompt and special tokens included they have more than `max_text_tokens`
    tokens, which is the setting or, if that is smaller, the model's own limit `max_positions`. `percentiles` are of the same
    counts, the 100th is the longest caption. `unknown_share` is the share of unknown tokens in captions and references, and
    `unknown` has the most frequent characters or words that became one.
    """

    captions: int
    longer: int
    max_text_tokens: int
    max_positions: int
    percentiles: dict[int, int]
    unknown_share: float
    unknown: dict[str, int]

    def lengths(self) -> str:
        """How many training captions are truncated, as a sentence."""
        reason = "train.max_text_tokens" if self.max_text_tokens < self.max_positions else "the model takes no more"
        half, most, longest = (self.percentiles.get(percent, 0) for percent in (50, 99, 100))
        return (
            f"{self.longer:,} of {self.captions:,} training captions are longer than {self.max_text_tokens} tokens ({reason}) "
            f"and are truncated; the median is {half}, the 99th percentile {most}, the longest {longest} tokens."
        )

    @property
    def has_unknown_tokens(self) -> bool:
        """Whether more than UNKNOWN_SHARE of the tokens are unknown."""
        return self.unknown_share > UNKNOWN_SHARE

    def unknown_tokens(self) -> str:
        """How many tokens are unknown, and the most frequent of them, as a sentence."""
        words = ", ".join(f"{word} ({count:,})" for word, count in self.unknown.items())
        counted = "training and evaluated" if self.captions else "evaluated"
        return (
            f"{self.unknown_share:.1%} of the tokens of all {counted} captions are unknown to the tokenizer: the model can "
            f"neither learn nor write them; the most frequent: {words}."
        )

    def warnings(self) -> list[str]:
        """A sentence if captions are truncated, and one if many tokens are unknown."""
        return [*([self.lengths()] if self.longer else []), *([self.unknown_tokens()] if self.has_unknown_tokens else [])]


class GenerationStatistics(StrictModel):
    """Generated captions and their references in tokens.

    `cut_off` of the `captions` reached `max_new_tokens` without an end token; None if a model behind an API does not say.
    `references_longer` is the share of the references with more tokens than that, `references_median` their median number of
    tokens; None if the tokenizer is unknown.
    """

    captions: int
    cut_off: int | None
    max_new_tokens: int
    references_longer: float | None = None
    references_median: float | None = None

    @property
    def has_long_references(self) -> bool:
        """Whether more than LONG_REFERENCES of the references are longer than a generated caption may be."""
        return (self.references_longer or 0.0) > LONG_REFERENCES

    @property
    def mostly_cut_off(self) -> bool:
        """Whether more than half of the captions were cut off."""
        return self.cut_off is not None and self.cut_off > self.captions / 2

    def __str__(self) -> str:
        number = "An unknown number" if self.cut_off is None else f"{self.cut_off:,}"
        return f"{number} of {self.captions:,} generated captions were cut off at {self.max_new_tokens} tokens ({_LIMIT})."

    def references(self) -> str:
        """How long the references are, as a sentence."""
        share, median = self.references_longer or 0.0, self.references_median or 0
        return (
            f"{share:.0%} of the references are longer than {self.max_new_tokens} tokens ({_LIMIT}), the median is {median:g}."
        )

    def warnings(self) -> list[str]:
        """One line if captions were cut off or if many references are longer, with what to try if most were; else empty."""
        advice = f" {_CUT_OFF}" if self.mostly_cut_off else ""
        if self.has_long_references:
            return [f"{self} {self.references()}{advice}"]
        return [f"{self}{advice}"] if self.cut_off else []


def caption_warnings(captions: Sequence[str]) -> list[str]:
    """A line if most of the captions are empty or, of at least three, equal, with what to try."""
    if not captions:
        return []
    text, count = Counter(caption.strip() for caption in captions).most_common(1)[0]
    if count <= len(captions) / 2:
        return []
    if not text:
        return [f"{count:,} of {len(captions):,} generated captions are empty. {_EMPTY}"]
    shown = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN].rstrip() + "..."
    equal = f"{count:,} of {len(captions):,} generated captions are equal ({shown!r}). {_EQUAL}"
    return [equal] if len(captions) >= _FEWEST_EQUAL else []
