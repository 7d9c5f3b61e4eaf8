"""n-grams and tokenized pairs, which all COCO caption metrics share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from medgraft.errors import ConfigError, ScoringError
from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.ptb import tokenize_lines

Tokenize = Callable[[Sequence[str]], list[list[str]]]
# how texts become tokens: as COCO does it, or as R2Gen and others score reports, without COCO's tokenizer
TOKENIZERS: Mapping[str, Tokenize] = {"ptb": tokenize_lines, "whitespace": lambda texts: [text.split() for text in texts]}

Ngrams = Counter[tuple[str, ...]]


def ngrams(tokens: Sequence[str], highest: int = 4) -> Ngrams:
    """Counts of all n-grams up to length `highest`, ordered by length."""
    counts: Ngrams = Counter()
    for n in range(1, highest + 1):
        counts.update(zip(*(tokens[i:] for i in range(n)), strict=False))
    return counts


def tokenize_pairs(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "ptb"
) -> list[tuple[list[str], list[list[str]]]]:
    """Each prediction's tokens with those of its references; ScoringError unless every prediction has a reference."""
    if not predictions or len(predictions) != len(references):
        raise ScoringError(f"{len(predictions)} predictions and {len(references)} lists of references cannot be scored.")
    empty = next((i for i, texts in enumerate(references) if not texts), None)
    if empty is not None:
        raise ScoringError(f"Prediction {empty} has no reference.")
    tokenize = TOKENIZERS[tokenizer]
    lines = iter(tokenize([text for texts in references for text in texts]))
    tokenized = [[next(lines) for _ in texts] for texts in references]
    return list(zip(tokenize(predictions), tokenized, strict=True))


class TokenMetric(CaptionMetric):
    """A metric of tokens: with `tokenizer` ptb those of COCO, with whitespace the text as it is, split at white space."""

    def __init__(self, tokenizer: str = "ptb"):
        if tokenizer not in TOKENIZERS:
            raise ConfigError(f"The tokenizer of a metric is {tokenizer!r}; it must be {' or '.join(TOKENIZERS)}.")
        self.tokenizer = tokenizer
        self.signature = f"{self.signature}|tok:{tokenizer}"
