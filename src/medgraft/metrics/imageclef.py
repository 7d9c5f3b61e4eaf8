"""Scores by the rules of ImageCLEFmedical Caption 2026: its preprocessing, and ROUGE-1 on the result."""

from __future__ import annotations

import re
import string
from collections import Counter

from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import CaptionSet, Measured, means

_NUMBER = re.compile(r"\d+")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def preprocess(caption: str) -> str:
    """Lower case, with each run of digits as the word "number" and without ASCII punctuation."""
    return _NUMBER.sub("number", caption.lower()).translate(_NO_PUNCTUATION)


def rouge_1(prediction: str, references: tuple[str, ...]) -> float:
    """Best unigram F1 over the references, with clipped counts and without stemming."""
    words = Counter(_words(prediction))
    return max(_f1(words, Counter(_words(reference))) for reference in references)


def _words(caption: str) -> list[str]:
    """Words as rouge-score splits them: runs of ASCII letters and digits."""
    return re.findall(r"[a-z0-9]+", preprocess(caption))


def _f1(prediction: Counter[str], reference: Counter[str]) -> float:
    shared = (prediction & reference).total()
    return 2 * shared / (prediction.total() + reference.total()) if shared else 0.0


class Rouge1(CaptionMetric):
    """`rouge_1`, the mean over images, between 0 and 1."""

    summary = rouge_1.__doc__ or ""
    citation = "Lin 2004, ROUGE. ImageCLEFmedical Caption 2026's rules."
    signature = "rouge_1|F|stem:no|prep:imageclef-2026 (lower, digits to number, punctuation deleted)"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        pairs = zip(captions.predictions, captions.references, strict=True)
        return means({"rouge_1": [rouge_1(prediction, references) for prediction, references in pairs]})
