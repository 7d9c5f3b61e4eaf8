"""BLEU-1..4 (Papineni et al. 2002) as COCO computes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import datasets
import evaluate

from medgraft.metrics.coco import ngrams, tokenize_pairs

_TINY, _SMALL = 1e-15, 1e-9


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU-1..4, closest reference length, on PTB tokens, with COCO's constants against division by zero."""
    correct, guessed = [0] * 4, [0] * 4
    length = reference_length = 0
    for tokens, lines in tokenize_pairs(predictions, references):
        best = ngrams(lines[0])
        for line in lines[1:]:
            best |= ngrams(line)
        for gram, count in ngrams(tokens).items():
            correct[len(gram) - 1] += min(count, best[gram])
        for n in range(4):
            guessed[n] += max(0, len(tokens) - n)
        length += len(tokens)
        reference_length += min((abs(len(line) - len(tokens)), len(line)) for line in lines)[1]
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, {}
    for n in range(4):
        product *= (correct[n] + _TINY) / (guessed[n] + _SMALL)
        scores[f"bleu_{n + 1}"] = product ** (1 / (n + 1)) * penalty
    return scores


class Bleu(evaluate.Metric):
    """`bleu_1` .. `bleu_4`, each between 0 and 1."""

    def _info(self) -> evaluate.MetricInfo:
        return caption_metric_info(bleu.__doc__ or "", "Papineni et al. 2002, BLEU. pycocoevalcap's rules.")

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return bleu(predictions, references)


def caption_metric_info(description: str, citation: str) -> evaluate.MetricInfo:
    """What evaluate wants to know of a metric on one caption and several references each."""
    text = datasets.Value("string")
    features = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
    return evaluate.MetricInfo(description=description, citation=citation, inputs_description="", features=features)
