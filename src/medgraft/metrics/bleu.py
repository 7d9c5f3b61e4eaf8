"""BLEU-1..4 (Papineni et al. 2002) as COCO computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medgraft.metrics.coco import TokenMetric, ngrams, tokenize_pairs
from medgraft.metrics.measured import Array, CaptionSet, Measured

_TINY, _SMALL = 1e-15, 1e-9


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "ptb") -> dict[str, float]:
    """Corpus BLEU-1..4 on PTB tokens with the closest reference length and COCO's constants against division by zero."""
    return {name: float(value) for name, value in _score(_rows(predictions, references, tokenizer).sum(axis=0)).items()}


def _rows(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> Array:
    """[N, 10]: matched and predicted n-grams for n = 1..4, length of the prediction, and length of the closest reference."""
    rows = np.zeros((len(predictions), 10))
    for row, (tokens, lines) in zip(rows, tokenize_pairs(predictions, references, tokenizer), strict=True):
        best = ngrams(lines[0])
        for line in lines[1:]:
            best |= ngrams(line)
        for gram, count in ngrams(tokens).items():
            row[len(gram) - 1] += min(count, best[gram])
        row[4:8] = [max(0, len(tokens) - n) for n in range(4)]
        row[8:] = len(tokens), min((abs(len(line) - len(tokens)), len(line)) for line in lines)[1]
    return rows


def _score(sums: Array) -> dict[str, Array]:
    ratio = (sums[..., 8] + _TINY) / (sums[..., 9] + _SMALL)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    product = np.cumprod((sums[..., :4] + _TINY) / (sums[..., 4:8] + _SMALL), axis=-1, dtype=np.float64)
    return {f"bleu_{n}": product[..., n - 1] ** (1 / n) * penalty for n in (1, 2, 3, 4)}


class Bleu(TokenMetric):
    """`bleu_1` .. `bleu_4`, each between 0 and 1."""

    summary = bleu.__doc__ or ""
    citation = "Papineni et al. 2002, BLEU. pycocoevalcap's rules."
    signature = "bleu|corpus|n:4|length:closest|smooth:1e-15,1e-9"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        rows = _rows(captions.predictions, captions.references, self.tokenizer)
        return Measured(rows, _score, _score(rows))
