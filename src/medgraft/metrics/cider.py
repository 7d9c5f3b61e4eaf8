"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) as COCO computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medgraft.metrics.coco import Ngrams, TokenMetric, ngrams, tokenize_pairs
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, means

_SIGMA = 6.0

Pairs = list[tuple[Ngrams, list[Ngrams]]]


@dataclass(frozen=True)
class _Vector:
    """tf-idf weights of one caption: by n-gram, with the norm for each n, and the number of bigrams."""

    weights: dict[tuple[str, ...], float]
    norms: tuple[float, ...]
    bigrams: int


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "ptb") -> list[float]:
    """For each prediction, 10 x the mean over n = 1..4 and over its references of the clipped tf-idf cosine.

    The cosine is damped by the difference in bigram count. Document frequencies come from `references`, so the score depends
    on the evaluated set.
    """
    pairs, idf = _weighed(predictions, references, tokenizer)
    return _scores(pairs, idf)


def _weighed(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str
) -> tuple[Pairs, dict[tuple[str, ...], float]]:
    """n-grams of each prediction with those of its references, and the idf weight of every n-gram of the references."""
    tokens = tokenize_pairs(predictions, references, tokenizer)
    pairs = [(ngrams(words), [ngrams(line) for line in lines]) for words, lines in tokens]
    frequency: Counter[tuple[str, ...]] = Counter()
    for _, several in pairs:
        frequency.update(set().union(*several))
    log_images = math.log(len(pairs))
    return pairs, {gram: log_images - math.log(count) for gram, count in frequency.items()}


def _scores(pairs: Pairs, idf: dict[tuple[str, ...], float]) -> list[float]:
    log_images = math.log(len(pairs))
    scores = []
    for prediction, several in pairs:
        vector = _vector(prediction, idf, log_images)
        scores.append(10 * sum(_similarity(vector, _vector(g, idf, log_images)) for g in several) / len(several))
    return scores


def _vector(counts: Ngrams, idf: dict[tuple[str, ...], float], unseen: float) -> _Vector:
    weights = {gram: count * idf.get(gram, unseen) for gram, count in counts.items()}
    squares = [0.0] * 4
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight * weight
    bigrams = sum(count for gram, count in counts.items() if len(gram) == 2)
    return _Vector(weights, tuple(map(math.sqrt, squares)), bigrams)


def _similarity(a: _Vector, b: _Vector) -> float:
    products = [0.0] * 4
    for gram, weight in a.weights.items():
        other = b.weights.get(gram)
        if other is not None:
            products[len(gram) - 1] += min(weight, other) * other
    cosines = (p / (x * y) if x and y else p for p, x, y in zip(products, a.norms, b.norms, strict=True))
    return sum(cosines) / 4 * math.exp(-((a.bigrams - b.bigrams) ** 2) / (2 * _SIGMA**2))


class Cider(TokenMetric):
    """`cider`, the mean over images, between 0 and 10; unavailable if every word is in the references of all images.

    Resampling images leaves document frequencies unchanged.
    """

    summary = cider.__doc__ or ""
    citation = "Vedantam et al. 2015, CIDEr. pycocoevalcap's rules (CIDEr-D)."
    signature = "cider|D|n:4|sigma:6|df:references of the scored set"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        pairs, idf = _weighed(captions.predictions, captions.references, self.tokenizer)
        if not any(idf.values()):
            why = "there is only one image" if len(pairs) == 1 else "all images have the same words in their references"
            raise UnavailableError(f"all its weights are 0, as {why}; CIDEr weighs words by how few of the images have them")
        return means({"cider": _scores(pairs, idf)})
