"""Greedy decoding with a key/value cache of fixed size, so that one CUDA graph computes every token of a caption.

A step of BLIP-base's decoder is some 600 small kernels, and a GPU waits for each of them to be launched from Python. Captured
once and replayed, they are launched together. A graph reads and writes the same memory at each replay: keys and values have a
place for every position of the longest caption (those ahead are masked), and the position itself is a tensor on the device.

`generator_for` is the way in. The step is the decoder's own forward pass, so that adapters and quantised layers take part in
it as they are, and runs without a graph on any device. Captions are those of transformers' greedy `generate` up to rounding.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import transformers
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from medgraft.acceleration.cuda_graph import failed_graphs
from medgraft.acceleration.static_decoder import StaticDecoder
from medgraft.backbones import Backbone
from medgraft.backbones.blip import BlipBackbone

GenerateIds = Callable[[torch.Tensor, torch.Tensor, transformers.GenerationConfig], torch.Tensor]
"""What `Backbone.continuation` is: features [B, S, C], input ids [B, T] and options to the new tokens [B, N]."""

SWITCH = "MEDGRAFT_ACCELERATION"
# options of `generate` that greedy decoding with a limit of new tokens does not read, and those that leave it as it is so
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
    """What generates the ids of captions on `device` inside the block: with CUDA graphs where it can, and else as always.

    Graphs and their memory are freed at the end of the block; weights must not change inside it.
    """
    if device.type != "cuda" or os.environ.get(SWITCH) == "none" or failed_graphs or not supports(backbone):
        yield backbone.continuation
        return
    generator = StaticGenerator(backbone, graph=True)
    try:
        yield generator
    finally:
        generator.free()


def supports(backbone: Backbone) -> bool:
    """Whether `StaticGenerator` knows the model: BLIP, without 8-bit layers, which wait for the device at each product."""
    if not isinstance(backbone, BlipBackbone) or type(backbone).continuation is not BlipBackbone.continuation:
        return False
    decoder = backbone.model.text_decoder
    in_8_bits = any(hasattr(parameter, "SCB") for parameter in decoder.parameters())
    return isinstance(decoder, BlipTextLMHeadModel) and not in_8_bits


class StaticGenerator:
    """`Backbone.continuation` of a BLIP by a `StaticDecoder`, made at the first batch and again for larger ones.

    What is not greedy decoding goes to the backbone, as does everything once no CUDA graph could be captured.
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
        """The new tokens [B, N] behind `input_ids` [B, T], on the CPU or on the device."""
        defaults = self._backbone.model.text_decoder.generation_config
        decoder = self._decoder_for(features, input_ids, decoding) if is_greedy(decoding, defaults) else None
        if decoder is None:
            return self._backbone.continuation(features, input_ids, decoding)
        return decoder.generate(features, input_ids, decoding.max_new_tokens)

    def free(self) -> None:
        """Release the graph and all memory that was set aside."""
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
            except RuntimeError as error:  # of CUDA: too little memory, or something that cannot be captured
                if not self._graph:
                    raise
                self.free()
                reason = str(error).partition("\n")[0]
                _log.warning("Captions are generated without a CUDA graph, which takes longer: %s", reason)
                self._given_up = True
        return self._decoder


def is_greedy(decoding: transformers.GenerationConfig, defaults: transformers.GenerationConfig) -> bool:
    """Whether `generate` decodes greedily to one end token; `defaults` are the model's, for what `decoding` leaves open."""
    options = {name: value for name, value in defaults.to_diff_dict().items() if value is not None}
    options |= {name: value for name, value in decoding.to_diff_dict().items() if value is not None}
    known = isinstance(options.get("eos_token_id"), int) and isinstance(options.get("pad_token_id"), int)
    return known and all(
        name in _UNREAD or value == _NEUTRAL.get(name, False) for name, value in options.items()
    )  # what is named nowhere, such as `do_sample`, may be there as False
