"""BERTScore (Zhang et al. 2020, arXiv 1904.09675) as ImageCLEFmedical Caption uses it: F1 with idf, no rescaling.

The model follows the metric's name, `bertscore:HUB_ID_OR_FOLDER`, and optionally the layer whose outputs are compared,
`bertscore:FOLDER@6`. The default is the last layer, or layer 40 of microsoft/deberta-xlarge-mnli, the campaign's model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from medgraft.errors import first_line
from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.imageclef import preprocess
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, means

_LAYERS = {"microsoft/deberta-xlarge-mnli": 40}
_BATCH = 64
_UNSEEN = -1  # stands for tokens that are in no reference

Embedded = tuple[torch.Tensor, torch.Tensor]  # unit vectors [T, C] and idf weights [T]; empty for a text without tokens


def bertscore(
    predictions: Sequence[str], references: Sequence[Sequence[str]], source: str, layer: int | None = None
) -> list[float]:
    """F1 of each prediction, the best over its references; idf is computed over all references.

    UnavailableError if the model cannot be loaded, or if every token is in all references, so that all weights are 0.
    """
    tokenizer, model = _load(source, layer)
    ids = {text: _tokens(text, tokenizer) for text in {*predictions, *(text for texts in references for text in texts)}}
    idf = _idf([ids[text] for texts in references for text in texts])
    if not any(weight for token, weight in idf.items() if token != _UNSEEN):
        raise UnavailableError("all its idf weights are 0, as every token is in all references; score more images together")
    embedded = _embed(ids, tokenizer, model, idf)
    return [
        max(_f1(embedded[prediction], embedded[text]) for text in texts)
        for prediction, texts in zip(predictions, references, strict=True)
    ]


def _load(source: str, layer: int | None) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = first_line(error)
        raise UnavailableError(f"the model {source} cannot be loaded: {reason}") from error
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if layers is None:
        raise UnavailableError(f"the model {source} is a {type(model).__name__}, which has no layers as BERT has them")
    wanted = layer or _LAYERS.get(source, len(layers))
    if not 0 < wanted <= len(layers):
        raise UnavailableError(f"the model {source} has {len(layers)} layers, not {wanted}")
    model.encoder.layer = layers[:wanted]
    return tokenizer, model.eval()


def _tokens(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text.strip(), truncation=True, max_length=min(tokenizer.model_max_length, 512))["input_ids"]
    return ids


def _idf(documents: Sequence[Sequence[int]]) -> Mapping[int, float]:
    """log((N + 1) / (n + 1)) of every token in n of N documents; special tokens occur in all and have weight 0."""
    counts = Counter(token for document in documents for token in set(document))
    return {token: math.log((len(documents) + 1) / (count + 1)) for token, count in counts.items()} | {
        _UNSEEN: math.log(len(documents) + 1)
    }


@torch.no_grad()
def _embed(ids: Mapping[str, list[int]], tokenizer: Any, model: Any, idf: Mapping[int, float]) -> dict[str, Embedded]:
    texts = sorted(ids, key=lambda text: len(ids[text]))
    special = len(tokenizer("")["input_ids"])
    found: dict[str, Embedded] = {}
    for start in range(0, len(texts), _BATCH):
        some = texts[start : start + _BATCH]
        batch = tokenizer.pad({"input_ids": [ids[text] for text in some]}, return_tensors="pt")
        hidden = model(**batch).last_hidden_state  # [B, T, C]
        for text, states in zip(some, hidden, strict=True):
            length = len(ids[text])
            weights = torch.tensor([idf.get(token, idf[_UNSEEN]) for token in ids[text]])
            if length <= special:
                weights = weights[:0]
            found[text] = torch.nn.functional.normalize(states[: len(weights)], dim=-1), weights
    return found


def _f1(prediction: Embedded, reference: Embedded) -> float:
    (a, a_weights), (b, b_weights) = prediction, reference
    if not len(a) or not len(b):
        return 0.0
    similarity = (a @ b.T).clamp(min=0)  # [T, T']
    precision = float((similarity.max(dim=1).values * a_weights).sum() / a_weights.sum())
    recall = float((similarity.max(dim=0).values * b_weights).sum() / b_weights.sum())
    score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return score if math.isfinite(score) else 0.0


class BertScore(CaptionMetric):
    """`bertscore`, the mean over images, on captions after ImageCLEFmedical's preprocessing."""

    summary = __doc__ or ""
    citation = "Zhang et al. 2020, BERTScore"

    def __init__(self, source: str = ""):
        super().__init__()
        name, _, layer = source.partition("@")
        self.source, self.layer = name, int(layer) if layer.isdigit() else None
        depth = str(self.layer or _LAYERS.get(name) or "last")
        self.signature = f"bertscore|F1|idf|rescale:no|model:{name}|layer:{depth}|prep:imageclef-2026"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        if not self.source:
            raise UnavailableError("no model was named: write bertscore:HUB_ID_OR_FOLDER")
        predictions = [preprocess(text) for text in captions.predictions]
        references = [[preprocess(text) for text in texts] for texts in captions.references]
        return means({"bertscore": bertscore(predictions, references, self.source, self.layer)})
