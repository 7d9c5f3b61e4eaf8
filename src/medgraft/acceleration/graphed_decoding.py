"""Greedy decoding with a static key/value cache, so that one CUDA graph computes every token of a caption.

A decoder step launches hundreds of small kernels, and the GPU waits for Python to launch each of them. A captured graph
launches them together. A graph reads and writes the same memory at each replay, so the cache has room for every position of
the longest caption (later positions are masked), and the position itself is a tensor on the device.

Callers use `generator_for`. The step is the decoder's own forward pass, with its adapters and quantised layers, and also runs
without a graph on any device. Captions equal those of transformers' greedy `generate` up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
import transformers
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from medgraft import hardware
from medgraft.acceleration.capture import failed_graphs
from medgraft.acceleration.static_decoder import StaticDecoder
from medgraft.acceleration.swap import Undo
from medgraft.backbones import Backbone
from medgraft.backbones.base import GenerateIds
from medgraft.backbones.blip import BlipBackbone

# options of `generate` that greedy decoding up to max_new_tokens ignores, and values of others that do not affect it
_UNREAD = {
    "max_new_tokens", "max_length", "eos_token_id", "pad_token_id", "bos_token_id", "length_penalty", "early_stopping",
    "temperature", "top_k", "top_p", "typical_p", "transformers_version", "_from_model_config",
}  # fmt: skip
_NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "diversity_penalty": 0.0, "min_length": 0, "use_cache": True,
}  # fmt: skip
_log = logging.getLogger(__name__)


@contextmanager
def generator_for(backbone: Backbone, device: torch.device) -> Iterator[GenerateIds]:
    """Yield a function that generates caption ids on `device`: with CUDA graphs if possible, else `backbone.generate_ids`.

    Weights must not change inside the block. Graphs and their memory are freed at its end.
    """
    if device.type != "cuda" or failed_graphs or not supports(backbone):
        yield backbone.generate_ids
        return
    generator = StaticGenerator(backbone, graph=True)
    try:
        yield generator
    finally:
        generator.free()


def supports(backbone: Backbone) -> bool:
    """Whether `StaticGenerator` supports the model: BLIP without 8-bit layers, which synchronise at each product."""
    if not isinstance(backbone, BlipBackbone) or type(backbone).generate_ids is not BlipBackbone.generate_ids:
        return False
    decoder = backbone.model.text_decoder
    in_8_bits = any(hasattr(parameter, "SCB") for parameter in decoder.parameters())
    return isinstance(decoder, BlipTextLMHeadModel) and not in_8_bits


class StaticGenerator:
    """`Backbone.generate_ids` of a BLIP with a `StaticDecoder`, which is created at the first batch and anew for larger ones.

    Falls back to the backbone if decoding is not greedy, or after a CUDA graph could not be captured.
    """

    def __init__(self, backbone: Backbone, *, graph: bool):
        self._backbone = backbone
        self._graph = graph
        self._given_up = False
        self._decoder: StaticDecoder | None = None

    @torch.no_grad()
    def __call__(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """The new tokens [B, N] after `input_ids` [B, T], on the CPU or on the device."""
        defaults = self._backbone.model.text_decoder.generation_config
        decoder = self._decoder_for(features, input_ids, decoding) if is_greedy(decoding, defaults) else None
        if decoder is None:
            return self._backbone.generate_ids(features, input_ids, decoding)
        return decoder.generate(features, input_ids, decoding.max_new_tokens)

    def free(self) -> None:
        """Release the graph and the cache."""
        if self._decoder is not None:
            self._decoder.free()
        self._decoder = None

    def _decoder_for(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> StaticDecoder | None:
        if self._given_up:
            return None
        length = input_ids.shape[1] + decoding.max_new_tokens
        eos, pad = int(decoding.eos_token_id), int(decoding.pad_token_id)
        if self._decoder is None or not self._decoder.takes(features, length, eos, pad):
            self.free()
            try:
                self._decoder = StaticDecoder(self._backbone.model.text_decoder, features, length, eos=eos, pad=pad)
                if self._graph:
                    self._decoder.capture()
            except RuntimeError as error:  # from CUDA: out of memory, or an operation that cannot be captured
                if not self._graph:
                    raise
                self.free()
                reason = str(error).partition("\n")[0]
                _log.warning("Captions are generated without a CUDA graph, which takes longer: %s", reason)
                self._given_up = True
        return self._decoder


def is_greedy(decoding: transformers.GenerationConfig, defaults: transformers.GenerationConfig) -> bool:
    """Whether `generate` decodes greedily to a single end token; `defaults` are the model's, where `decoding` sets nothing."""
    options = {name: value for name, value in defaults.to_diff_dict().items() if value is not None}
    options |= {name: value for name, value in decoding.to_diff_dict().items() if value is not None}
    known = isinstance(options.get("eos_token_id"), int) and isinstance(options.get("pad_token_id"), int)
    return known and all(
        name in _UNREAD or value == _NEUTRAL.get(name, False) for name, value in options.items()
    )  # options in neither table, such as `do_sample`, have to be False


@dataclass(frozen=True)
class GraphedGeneration:
    """Replaces a backbone's method `generating`."""

    backbone: Backbone

    def __call__(self) -> AbstractContextManager[GenerateIds]:
        """See Backbone.generating."""
        return generator_for(self.backbone, hardware.device())


def install(backbone: Backbone) -> Undo | None:
    """Install on a BLIP whose decoder `StaticGenerator` supports."""
    if not supports(backbone):
        return None
    if isinstance(backbone.generating, GraphedGeneration):
        return lambda: None
    backbone.generating = GraphedGeneration(backbone)  # type: ignore[method-assign,assignment]

    def undo() -> None:
        vars(backbone).pop("generating", None)

    return undo
