"""METEOR (Banerjee and Lavie 2005) as nltk computes it, on COCO's tokens.

Matches are exact, by Porter stem and, if nltk finds WordNet's data, by synonym; the signature states which. COCO's evaluation
uses METEOR 1.5, which has a paraphrase table and other parameters, so its scores are not comparable.
"""

from __future__ import annotations

from typing import Any

from medgraft.metrics.coco import TOKENIZERS, TokenMetric
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, means


class _NoSynonyms:
    """Replaces WordNet if its data are missing."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


class Meteor(TokenMetric):
    """`meteor`: the mean over images of the best score against any reference."""

    summary = __doc__ or ""
    citation = "Banerjee and Lavie 2005, ACL workshop on intrinsic and extrinsic evaluation measures"

    def __init__(self, tokenizer: str = "ptb"):
        self._nltk, self._wordnet = _load()
        synonyms = "none" if isinstance(self._wordnet, _NoSynonyms) else "wordnet"
        version = self._nltk.__version__ if self._nltk else None
        self.signature = f"meteor|nltk:{version}|alpha:0.9|beta:3|gamma:0.5|stems:porter|synonyms:{synonyms}"
        super().__init__(tokenizer)

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        if self._nltk is None:
            raise UnavailableError("nltk is not installed: pip install 'medgraft[meteor]'")
        from nltk.translate.meteor_score import meteor_score

        tokenize = TOKENIZERS[self.tokenizer]
        scores = [
            float(meteor_score([tokenize([text])[0] for text in references], *tokenize([prediction]), wordnet=self._wordnet))
            for prediction, references in zip(captions.predictions, captions.references, strict=True)
        ]
        return means({"meteor": scores})


def _load() -> tuple[Any, Any]:
    """nltk, or None if it is not installed; and WordNet, or its replacement."""
    try:
        import nltk
        from nltk.corpus import wordnet
    except ImportError:
        return None, _NoSynonyms()
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return nltk, _NoSynonyms()
    return nltk, wordnet
