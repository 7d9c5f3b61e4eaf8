"""Captions counted in tokens."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from medgraft.backbones import AnyBackbone, Backbone, prompt_for
from medgraft.captioning import Generated, token_limit
from medgraft.config import RunConfig
from medgraft.text_statistics import GenerationStatistics, TextStatistics
from medgraft.types import CaptionData, Example, own_prompts

_logger = logging.getLogger(__name__)
_BATCH = 1000  # captions tokenised at once
_MOST_FREQUENT, _LONGEST_WORD = 5, 20  # unknown words that are listed, and characters of each


def text_statistics(
    backbone: Backbone, training: Iterable[Example], evaluated: Iterable[Example], *, prompt: str, max_text_tokens: int
) -> TextStatistics:
    """Statistics of all captions of the `training` examples, and of unknown tokens in those of the `evaluated` ones too."""
    max_positions = backbone.max_positions - backbone.image_tokens
    longest = min(max_text_tokens, max_positions)
    training = list(training)
    trained, others = _Tokens(backbone, _captions(training)), _Tokens(backbone, _captions(evaluated))
    lengths = np.array(trained.lengths, dtype=int)
    if len(lengths):  # with the end token and what precedes the caption
        asked = own_prompts([example.prompt for example in training for caption in example.captions if caption], prompt)
        heads = map(len, backbone.heads(asked, len(lengths)))
        lengths += 1 + longest - np.array([backbone.max_caption_tokens(head, max_text_tokens) for head in heads])
    percents = (50, 90, 99, 100)
    found = np.percentile(lengths, percents, method="inverted_cdf") if len(lengths) else ()
    unknown = trained.unknown + others.unknown
    total = sum(trained.lengths) + sum(others.lengths)
    return TextStatistics(
        captions=len(lengths), longer=int((lengths > longest).sum()), max_text_tokens=longest, max_positions=max_positions,
        percentiles={percent: int(value) for percent, value in zip(percents, found, strict=False)},
        unknown_share=unknown.total() / total if total else 0.0, unknown=dict(unknown.most_common(_MOST_FREQUENT)),
    )  # fmt: skip


def logged_statistics(config: RunConfig, backbone: AnyBackbone, data: CaptionData, *, trains: bool) -> TextStatistics | None:
    """`text_statistics` of a run, with a warning for each problem in the log; None for a model behind an API."""
    if not isinstance(backbone, Backbone):
        return None
    text = text_statistics(
        backbone, data.split("train") if trains else (), data.split(config.eval_split),
        prompt=prompt_for(backbone, config.train.prompt), max_text_tokens=config.train.max_text_tokens,
    )  # fmt: skip
    for warning in text.warnings():
        _logger.warning("%s", warning)
    return text


def generation_statistics(backbone: Backbone | None, examples: Iterable[Example], generated: Generated) -> GenerationStatistics:
    """Statistics of captions `generated` for `examples`; `backbone` is None for a model behind an API."""
    captions, limit = len(generated.captions), generated.max_new_tokens
    counts = _Tokens(backbone, _captions(examples)).lengths if backbone else []
    return GenerationStatistics(
        captions=captions, cut_off=generated.cut_off, max_new_tokens=limit,
        references_longer=float(np.mean(np.array(counts) > limit)) if counts else None,
        references_median=float(np.median(counts)) if counts else None,
    )  # fmt: skip


def planned_statistics(
    config: RunConfig, backbone: Backbone, training: Iterable[Example], evaluated: Sequence[Example]
) -> tuple[TextStatistics, GenerationStatistics]:
    """The statistics of a run before anything is generated."""
    prompt = prompt_for(backbone, config.train.prompt)
    text = text_statistics(backbone, training, evaluated, prompt=prompt, max_text_tokens=config.train.max_text_tokens)
    nothing = Generated([], None, token_limit(backbone, prompt, config.generation))
    return text, generation_statistics(backbone, evaluated, nothing)


def _captions(examples: Iterable[Example]) -> list[str]:
    return [caption for example in examples for caption in example.captions if caption]


class _Tokens:
    """The number of tokens of each caption, without special tokens, and the texts of the unknown ones among them."""

    def __init__(self, backbone: Backbone, captions: Sequence[str]):
        self.lengths: list[int] = []
        self.unknown: Counter[str] = Counter()
        unknown = _unknown_id(backbone)
        for start in range(0, len(captions), _BATCH):
            batch = captions[start : start + _BATCH]
            rows = backbone.token_ids(batch)
            self.lengths += map(len, rows)
            having = [(caption, ids) for caption, ids in zip(batch, rows, strict=True) if unknown in ids]
            spans = backbone.token_spans([caption for caption, _ in having]) if having else []
            for (caption, ids), of_caption in zip(having, spans, strict=True):
                places = [span for token, span in zip(ids, of_caption, strict=True) if token == unknown]
                self.unknown.update(caption[start:end].strip()[:_LONGEST_WORD] for start, end in places)


def _unknown_id(backbone: Backbone) -> int | None:
    """The token of unknown text; None for tokenizers of bytes, which may name their end token so."""
    unknown: int | None = getattr(backbone.tokenizer, "unk_token_id", None)
    return None if unknown in (backbone.end_id, backbone.tokenizer.eos_token_id) else unknown
