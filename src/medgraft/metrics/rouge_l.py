"""ROUGE-L (Lin 2004) as COCO computes it."""

from __future__ import annotations

from collections.abc import Sequence

from medgraft.metrics.coco import TokenMetric, tokenize_pairs
from medgraft.metrics.measured import CaptionSet, Measured, means

_BETA2 = 1.2**2


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "ptb") -> list[float]:
    """For each prediction: F with beta 1.2 of the best precision and the best recall over its references."""
    return [
        _score(words or [""], [line or [""] for line in lines])
        for words, lines in tokenize_pairs(predictions, references, tokenizer)
    ]


def _score(candidate: list[str], references: list[list[str]]) -> float:
    common = [_lcs(candidate, reference) for reference in references]
    precision = max(c / len(candidate) for c in common)
    recall = max(c / len(reference) for c, reference in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA2) * precision * recall / (recall + _BETA2 * precision)


def _lcs(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyro 2004): one big-integer operation per word of `b`."""
    positions: dict[str, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    ones = (1 << len(a)) - 1
    row = ones
    for word in b:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & ones
    return len(a) - row.bit_count()


class RougeL(TokenMetric):
    """`rouge_l`, the mean over images, between 0 and 1."""

    summary = rouge_l.__doc__ or ""
    citation = "Lin 2004, ROUGE. pycocoevalcap's rules."
    signature = "rouge_l|beta:1.2"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        return means({"rouge_l": rouge_l(captions.predictions, captions.references, self.tokenizer)})
