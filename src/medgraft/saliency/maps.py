"""Attention maps over an image's patches, one for every word of a caption."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from medgraft.backbones import AnyBackbone, Backbone, RemoteCaptioner, TextBatch
from medgraft.backbones.side_by_side import side_by_side
from medgraft.errors import BackboneError, ConfigError
from medgraft.metrics.measured import Array
from medgraft.saliency.record import Attentions, graph_below, recorded
from medgraft.saliency.relevance import cross_relevance, normalised, rollout, self_relevance, weighted
from medgraft.saliency.words import Word, words_of
from medgraft.types import AttentionLayout, Prompts, Seam

Method = Literal["attention", "rollout", "gradient"]
METHODS: tuple[Method, ...] = get_args(Method)
_LABELS = {"rollout": "with rollout of the vision tower", "gradient": "weighted by gradients"}
_CLASS_TOKENS = 5  # the most that may precede the patches: DINOv2's class token and four registers


@dataclass(frozen=True)
class MapOptions:
    """How maps are computed. `layers` and `heads`, counted from 0, select the text's attention; the default is all."""

    method: Method = "attention"
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None


@dataclass(frozen=True)
class WordMap:
    """A word at [start, end) of its caption, and its map [rows, columns] over the patches that the model sees.

    With `attention` and `rollout` a map sums to the patches' share of the attention; the rest belongs to other tokens, such as
    a class token. With `gradient` values have no unit. `probability` is that of the word after the words before it: the product
    over its tokens.
    """

    text: str
    start: int
    end: int
    grid: Array
    probability: float


@dataclass(frozen=True)
class CaptionMaps:
    """A caption with the maps of its words; `label` describes the maps."""

    caption: str
    words: tuple[WordMap, ...]
    label: str

    def mean(self) -> Array:
        """The mean map of all words, [rows, columns]."""
        mean: Array = np.mean([word.grid for word in self.words], axis=0)
        return mean

    def over(self, start: int, end: int) -> Array | None:
        """The mean map of the words that overlap [start, end) of the caption, None if there are none."""
        grids = [word.grid for word in self.words if max(word.start, start) < min(word.end, end)]
        return np.mean(grids, axis=0) if grids else None


def attention_layout_of(backbone: AnyBackbone, method: str) -> AttentionLayout:
    """The attention layout of `backbone` for `method`; an error names the methods that it has if not this one."""
    if method not in METHODS:
        raise ConfigError(f"There is no method {method!r}. Known: {', '.join(METHODS)}.")
    if isinstance(backbone, RemoteCaptioner):
        raise BackboneError("A model behind an API returns no attention weights, so it has no attention maps.")
    layout, name = backbone.attention_layout, type(backbone).__name__
    if layout is None:
        raise BackboneError(f"{name} declares no attention layout, so it has no attention maps.")
    if layout.vision is not None and not any(re.fullmatch(layout.vision, name) for name, _ in backbone.model.named_modules()):
        layout = replace(layout, vision=None)  # such as Swin, whose windows do not attend to all patches
    if method == "gradient" and layout.vision is None and layout.text is not None:
        raise BackboneError(f"{name} returns no attention of its vision tower, which method 'gradient' needs. Use 'attention'.")
    if method == "rollout" and layout.vision is None:
        raise BackboneError(f"{name} returns no attention of its vision tower, which method 'rollout' needs. Use 'attention'.")
    if method == "gradient" and layout.queries is not None:
        raise BackboneError(f"Method 'gradient' is not defined through the queries of {name}. Use 'attention'.")
    return layout


def caption_maps(
    backbone: Backbone,
    inputs: torch.Tensor,
    captions: Sequence[str],
    *,
    seam: Seam | None = None,
    prompt: Prompts = "",
    options: MapOptions = MapOptions(),
) -> list[CaptionMaps]:
    """Maps of every word of `captions`, computed by teacher forcing.

    `inputs` are pixel values, or features at `seam`. A word's map is the mean over the positions that predict its tokens.
    `inputs` of several images for each caption, one after the other, give the maps of the first image beside the others.
    """
    method, images = options.method, len(inputs) // len(captions)
    layout = attention_layout_of(backbone, method)
    if images > 1 and method != "attention":
        raise ConfigError(f"Method {method!r} takes one image, and a study here has {images}. Use method 'attention'.")
    if method == "gradient" and (options.layers is not None or options.heads is not None):
        raise ConfigError("Method 'gradient' uses all layers and heads; leave out layers and heads, or use another method.")
    text = backbone.text_batch(captions, prompt=prompt, max_tokens=backbone.max_positions).to(inputs.device)
    places = _places(backbone, captions, text)
    above = backbone.seams if seam is None else backbone.seams[backbone.seams.index(seam) + 1 :]
    forward = _Forward(backbone, layout, inputs, above, text, prompt)
    vectors, logits = _by_gradient(forward, places) if method == "gradient" else _by_attention(forward, places, options)
    likely = _probabilities(logits.detach(), text.labels, places, backbone.logits_offset)
    return [
        CaptionMaps(
            caption,
            tuple(
                WordMap(w.text, w.start, w.end, as_grid(v[: len(v) // images]), p)
                for (w, _), v, p in zip(of, values, probable, strict=True)
            ),
            layout.label if method == "attention" else f"{layout.label}, {_LABELS[method]}",
        )
        for caption, of, values, probable in zip(captions, places, vectors, likely, strict=True)
    ]


def layer_count(backbone: Backbone) -> int:
    """The number of layers in which words attend to the image."""
    pattern = attention_layout_of(backbone, "attention").words
    return sum(re.fullmatch(pattern, name) is not None for name, _ in backbone.model.named_modules())


def as_grid(vector: torch.Tensor) -> Array:
    """Values of an image's tokens [S] as [rows, columns] of its patches, which form a square after any class tokens."""
    for others in range(_CLASS_TOKENS + 1):
        side = math.isqrt(len(vector) - others)
        if side * side == len(vector) - others:
            grid: Array = vector[others:].reshape(side, side).cpu().double().numpy()
            return grid
    raise BackboneError(f"{len(vector)} image tokens are not a square of patches, so this model has no maps.")


_Places = list[tuple[tuple[Word, tuple[int, ...]], ...]]  # of each caption: its words, with the positions of their labels


def _places(backbone: Backbone, captions: Sequence[str], text: TextBatch) -> _Places:
    found: _Places = []
    for caption, spans, labels in zip(captions, backbone.token_spans(captions), text.labels, strict=True):
        labelled = (labels != -100).nonzero()[:, 0].tolist()
        words = words_of(caption, spans, len(labelled))  # an end token has a label and no span
        found.append(tuple((word, tuple(labelled[token] for token in word.tokens)) for word in words))
    return found


@dataclass(frozen=True)
class _Forward:
    """A forward pass of `text`, from `inputs` through the seams `above`."""

    backbone: Backbone
    layout: AttentionLayout
    inputs: torch.Tensor
    above: Sequence[Seam]
    text: TextBatch
    prompt: Prompts

    def __call__(self) -> tuple[torch.Tensor, int, slice]:
        """Logits [B, T, V], and where the words' attention to the image is (see Backbone.attention_index)."""
        seen = self.backbone.forward_through(self.above, self.inputs, prompt=self.prompt)
        rows = len(self.text.input_ids)
        ((_, features),) = side_by_side(seen, [len(seen) // rows] * rows)
        logits = self.backbone.decode(features, self.text)[1]
        return logits, *self.backbone.attention_index(features, self.text)


_Vectors = list[list[torch.Tensor]]  # of each caption: the map of each word, [S]


def _probabilities(logits: torch.Tensor, labels: torch.Tensor, places: _Places, offset: int) -> list[list[float]]:
    """Of each caption, the probability of each word; logits are [B, T, V]."""
    found = []
    for b, words in enumerate(places):
        rows = [place for _, of_word in words for place in of_word]
        tokens = logits[b, [row - offset for row in rows]].float().log_softmax(-1).gather(-1, labels[b, rows, None])[:, 0]
        of_words = torch.split(tokens, [len(of_word) for _, of_word in words])
        found.append([float(of_word.sum().exp()) for of_word in of_words])
    return found


def _by_attention(forward: _Forward, places: _Places, options: MapOptions) -> tuple[_Vectors, torch.Tensor]:
    """Maps, and the logits [B, T, V] of the same forward pass, as `_by_gradient`."""
    layout, method = forward.layout, options.method
    wanted = {
        "words": layout.words,
        "queries": layout.queries,
        "vision": layout.vision if method == "rollout" else None,
    }
    with torch.no_grad(), recorded(forward.backbone, wanted) as seen:
        logits, shift, columns = forward()
    where = forward.inputs.device  # of layers on several devices

    def layers(what: str) -> list[torch.Tensor]:
        return [weights.to(where) for weights in seen.layers(what)]

    attention = _mean(layers("words"), options.layers, options.heads)[:, :, columns]  # [B, Q, image tokens]
    if layout.queries is not None:
        attention = attention @ _mean(layers("queries"), None, None)  # [B, Q, S]
    if method == "rollout":
        attention = attention @ rollout(layers("vision"))
    return _rows(attention, places, shift), logits


def _by_gradient(forward: _Forward, places: _Places) -> tuple[_Vectors, torch.Tensor]:
    """Maps of the first word of every caption in one backward pass, then of the second: captions are independent."""
    backbone, layout, labels = forward.backbone, forward.layout, forward.text.labels
    wanted = {"words": layout.words, "vision": layout.vision, "text": layout.text}
    with graph_below(backbone.model), recorded(backbone, wanted) as seen:
        logits, shift, columns = forward()
        found: _Vectors = [[] for _ in places]
        for number in range(max(map(len, places), default=0)):
            rows = [(b, place) for b, words in enumerate(places) for place in (words[number][1] if number < len(words) else ())]
            target = sum(logits[b, place - backbone.logits_offset, labels[b, place]].float() for b, place in rows)
            relevance = _relevance(layout, seen, target, columns)  # [B, Q, image tokens]
            for b, words in enumerate(places):
                if number < len(words):
                    found[b].append(relevance[b, [place + shift for place in words[number][1]]].mean(0))
    return found, logits


def _relevance(layout: AttentionLayout, seen: Attentions, target: torch.Tensor | int, columns: slice) -> torch.Tensor:
    kinds = [
        kind
        for kind, pattern in (
            ("words", layout.words),
            ("vision", layout.vision),
            ("text", layout.text),
        )
        if pattern
    ]
    weights = {kind: seen.layers(kind) for kind in kinds}
    flat = [layer for kind in kinds for layer in weights[kind]]
    gradients = iter(torch.autograd.grad(target, flat, retain_graph=True, allow_unused=True))  # type: ignore[arg-type]
    found = {kind: [weighted(layer.detach(), next(gradients)) for layer in weights[kind]] for kind in kinds}
    where = found["words"][0].device  # of layers on several devices
    of = {kind: [layer.to(where) for layer in layers] for kind, layers in found.items()}
    image = self_relevance(of["vision"]) if layout.vision else None
    if layout.text is None:
        both = self_relevance(of["words"])[:, :, columns]
        return both if image is None else both @ normalised(image)
    if image is None:
        image = torch.eye(of["words"][0].shape[-1], device=of["words"][0].device)[None]
    return cross_relevance(of["text"], of["words"], image)


def _mean(layers: list[torch.Tensor], which: Sequence[int] | None, heads: Sequence[int] | None) -> torch.Tensor:
    """The mean of the selected layers and heads, [B, Q, K]."""
    counts = {"layer": (which, len(layers)), "head": (heads, layers[0].shape[1])}
    for what, (chosen, count) in counts.items():
        if chosen is not None and not chosen:
            raise ConfigError(f"No {what} is selected; name some of its {count}, or leave the option out for all.")
        if wrong := [number for number in chosen or () if not 0 <= number < count]:
            raise ConfigError(f"There is no {what} {wrong[0]}; this model has {count}, counted from 0.")
    chosen_layers = [layers[i].float() for i in (which if which is not None else range(len(layers)))]
    return torch.stack([w[:, list(heads)].mean(1) if heads is not None else w.mean(1) for w in chosen_layers]).mean(0)


def _rows(attention: torch.Tensor, places: _Places, shift: int) -> _Vectors:
    return [
        [attention[b, [place + shift for place in of_word]].mean(0) for _, of_word in words] for b, words in enumerate(places)
    ]
