"""n-grams and tokenized pairs, which all COCO caption metrics share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from medgraft.errors import ScoringError
from medgraft.metrics.ptb import tokenize_lines

TOKENIZER = "tok:ptb"  # in the signatures of metrics that use these tokens

Ngrams = Counter[tuple[str, ...]]


def ngrams(tokens: Sequence[str], highest: int = 4) -> Ngrams:
    """Counts of all n-grams up to length `highest`, ordered by length."""
    counts: Ngrams = Counter()
    for n in range(1, highest + 1):
        counts.update(zip(*(tokens[i:] for i in range(n)), strict=False))
    return counts


def tokenize_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[list[str], list[list[str]]]]:
    """Each prediction's tokens with those of its references; ScoringError unless every prediction has a reference."""
    if not predictions or len(predictions) != len(references):
        raise ScoringError(f"{len(predictions)} predictions and {len(references)} lists of references cannot be scored.")
    empty = next((i for i, texts in enumerate(references) if not texts), None)
    if empty is not None:
        raise ScoringError(f"Prediction {empty} has no reference.")
    lines = iter(tokenize_lines([text for texts in references for text in texts]))
    tokenized = [[next(lines) for _ in texts] for texts in references]
    return list(zip(tokenize_lines(predictions), tokenized, strict=True))
