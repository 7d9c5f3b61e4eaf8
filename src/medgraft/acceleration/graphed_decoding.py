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
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
import transformers
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.func import functional_call
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel
from transformers.pytorch_utils import Conv1D

from medgraft.backbones import Backbone
from medgraft.backbones.blip import BlipBackbone

GenerateIds = Callable[[torch.Tensor, torch.Tensor, transformers.GenerationConfig], torch.Tensor]
"""What `Backbone.continuation` is: features [B, S, C], input ids [B, T] and options to the new tokens [B, N]."""

SWITCH = "MEDGRAFT_ACCELERATION"
_CHECK_EVERY = 8  # tokens between two questions whether every caption has ended
_LENGTH_MULTIPLE = 16  # of the cache: attention kernels want masks whose rows are aligned
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
_failed_graphs: list[torch.cuda.CUDAGraph] = []  # torch's allocator may still ask them for their capture


@contextmanager
def generator_for(backbone: Backbone, device: torch.device) -> Iterator[GenerateIds]:
    """What generates the ids of captions on `device` inside the block: with CUDA graphs where it can, and else as always.

    Graphs and their memory are freed at the end of the block; weights must not change inside it.
    """
    if device.type != "cuda" or os.environ.get(SWITCH) == "none" or _failed_graphs or not supports(backbone):
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
        if _failed_graphs:
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
                self._graph = False
                return None
        return self._decoder


def is_greedy(decoding: transformers.GenerationConfig, defaults: transformers.GenerationConfig) -> bool:
    """Whether `generate` decodes greedily to one end token; `defaults` are the model's, for what `decoding` leaves open."""
    options = {name: value for name, value in defaults.to_diff_dict().items() if value is not None}
    options |= {name: value for name, value in decoding.to_diff_dict().items() if value is not None}
    known = isinstance(options.get("eos_token_id"), int) and isinstance(options.get("pad_token_id"), int)
    return known and all(
        name in _UNREAD or value == _NEUTRAL.get(name, False) for name, value in options.items()
    )  # what is named nowhere, such as `do_sample`, may be there as False


class StaticDecoder:
    """A BLIP text decoder with memory for so many images, of so many patches, and so many tokens.

    `features` [B, S, C] show the shapes and types that `generate` will be given. It is made for the autocast of its caller.
    """

    def __init__(self, decoder: BlipTextLMHeadModel, features: torch.Tensor, length: int, *, eos: int, pad: int):
        self._decoder: Any = decoder
        self._eos, self._pad = eos, pad
        self._device, self._shape, self._dtype = features.device, features.shape, features.dtype
        self._compute_dtype = _autocast_dtype(features.device)
        self._rounded = rounded_parameters(decoder, self._compute_dtype) if self._compute_dtype is not None else {}
        self._room = -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        self._graph: torch.cuda.CUDAGraph | None = None
        rows = len(features)
        self._tokens = torch.full((rows, self._room), pad, dtype=torch.long, device=self._device)
        masks = torch.full((self._room, self._room), float("-inf"), device=self._device)  # added to scores, by position
        self._masks = masks.triu(1).to(self._compute_dtype or torch.float32)
        self._position = torch.zeros(1, dtype=torch.long, device=self._device)  # of the token that is read next
        self._given = torch.ones(1, dtype=torch.long, device=self._device)  # tokens that are not generated
        self._ended = torch.zeros(rows, dtype=torch.bool, device=self._device)
        layers = len(decoder.bert.encoder.layer)
        self._words = [_Words(self._position, self._room) for _ in range(layers)]
        self._images = [_Image() for _ in range(layers)]
        self._cache = EncoderDecoderCache(Cache(layers=list(self._words)), Cache(layers=list(self._images)))
        self._cache.is_updated = dict.fromkeys(range(layers), True)
        self._set_images(features)

    def takes(self, features: torch.Tensor, length: int, eos: int, pad: int) -> bool:
        """Whether `generate` has room for such features and tokens."""
        return (
            (eos, pad) == (self._eos, self._pad)
            and features.shape[0] <= self._shape[0]
            and features.shape[1:] == self._shape[1:]
            and (features.device, features.dtype) == (self._device, self._dtype)
            and length <= self._room
            and _autocast_dtype(self._device) == self._compute_dtype
        )

    @torch.no_grad()
    def capture(self) -> None:
        """Capture a step as a CUDA graph; RuntimeError if that cannot be done."""
        self._position.zero_()
        self._graph = captured(self._step, self._device)

    def free(self) -> None:
        """Release the graph; the rest goes with the object."""
        if self._graph is not None:
            torch.cuda.synchronize(self._device)
            self._graph.reset()
        self._graph = None

    @torch.no_grad()
    def generate(self, features: torch.Tensor, input_ids: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """The new tokens [B, N] behind `input_ids` [B, T], on the CPU; rows that have ended go on with padding."""
        rows, given = input_ids.shape
        self._set_images(features)
        self._tokens[:rows, :given] = input_ids
        self._position.zero_()
        self._given.fill_(given)
        self._ended.zero_()
        self._ended[rows:] = True
        asked: deque[Callable[[], bool]] = deque()
        for count in range(1, given + max_new_tokens):
            self._step() if self._graph is None else self._graph.replay()
            if count >= given and count % _CHECK_EVERY == 0:
                asked.append(self._ask_whether_all_ended())
                # the answer of the last question but one: the device is at work on what was asked for since
                if len(asked) > (self._device.type == "cuda") and asked.popleft()():
                    break
        ids = self._tokens[:rows, given : given + max_new_tokens].cpu()
        return ids[:, : _until_all_ended(ids, self._eos)]

    def _step(self) -> None:
        """Read the token at the position and write the next one, unless that is given."""
        inputs = {
            "input_ids": self._tokens.index_select(1, self._position),
            "attention_mask": self._masks.index_select(0, self._position)[None, None],  # [1, 1, 1, L]
            "position_ids": self._position[None],
            "encoder_hidden_states": self._tokens,  # not read, as all its keys and values are there
            "past_key_values": self._cache,
            "use_cache": True,
        }
        with self._autocast():
            logits = functional_call(self._decoder, self._rounded, (), inputs, tie_weights=False).logits[:, -1]
        chosen = logits.argmax(dim=-1).masked_fill(self._ended, self._pad)
        self._position += 1
        is_given = self._position < self._given
        chosen = torch.where(is_given, self._tokens.index_select(1, self._position)[:, 0], chosen)
        self._tokens.index_copy_(1, self._position, chosen[:, None])
        self._ended |= (chosen == self._eos) & ~is_given

    def _set_images(self, features: torch.Tensor) -> None:
        """Compute the keys and values of images once for all their tokens."""
        rounded = features if self._compute_dtype is None else features.to(self._compute_dtype)
        for layer, image in zip(self._decoder.bert.encoder.layer, self._images, strict=True):
            attention = layer.crossattention.self
            inputs = [rounded if _rounds_inputs(module) else features for module in (attention.key, attention.value)]
            heads = attention.num_attention_heads
            image.set(_by_heads(attention.key(inputs[0]), heads), _by_heads(attention.value(inputs[1]), heads))

    def _autocast(self) -> AbstractContextManager[object]:
        """The caller's, without its memory of rounded weights: those would be freed while the graph still reads them."""
        if self._compute_dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._compute_dtype, cache_enabled=False)

    def _ask_whether_all_ended(self) -> Callable[[], bool]:
        """Something that waits until the device has come here, and then says whether all captions have ended."""
        answer = self._ended.all().to("cpu", non_blocking=True)
        if self._device.type != "cuda":
            return lambda: bool(answer)
        event = torch.cuda.Event()
        event.record()

        def wait() -> bool:
            event.synchronize()
            return bool(answer)

        return wait


class _Words(CacheLayerMixin):
    """Keys and values of a layer's self-attention, [B, H, L, D], of which `update` writes those at `position`."""

    is_compileable = True
    is_sliding = False

    def __init__(self, position: torch.Tensor, room: int):
        super().__init__()
        self._position, self._room = position, room

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Zeros: what is masked is multiplied by 0, and must be a number."""
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(rows, heads, self._room, width)
        self.values = value_states.new_zeros(rows, heads, self._room, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, with those of one token, [B, H, 1, D], at their place."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys.index_copy_(2, self._position, key_states)
        self.values.index_copy_(2, self._position, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset)."""
        return self._room, 0

    def get_seq_length(self) -> int:
        """The length that is always there."""
        return self._room

    def get_max_length(self) -> int:
        """The same."""
        return self._room


class _Image(_Words):
    """Keys and values of a layer's cross-attention, [B, H, S, D], which stay for a whole batch."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0), 0)

    def set(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write those of as many images as there are or fewer; the first time decides how many there may be."""
        if not self.is_initialized:
            self.keys, self.values = keys.clone(), values.clone()
            self.is_initialized = True
        else:
            self.keys[: len(keys)] = keys
            self.values[: len(values)] = values


def _by_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, S, H D] as [B, H, S, D]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _is_float_linear(module: nn.Module) -> bool:
    """Whether `module` multiplies by a matrix that is not quantised."""
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear | Conv1D) and weight.is_floating_point() and not hasattr(weight, "quant_state")


def _rounds_inputs(module: nn.Module) -> bool:
    """Whether a layer reads its inputs in the dtype of autocast, so that rounding them once before changes nothing."""
    adapted = isinstance(module, BaseTunerLayer)
    return _is_float_linear(module.base_layer if adapted else module) and (not adapted or _is_plain_lora(module))


def _is_plain_lora(layer: nn.Module) -> bool:
    """Whether a PEFT layer uses its matrices in products and nowhere else, as DoRA does."""
    return isinstance(layer, LoraLayer) and not getattr(layer, "lora_variant", None)


def rounded_parameters(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Copies in `dtype` of the fp32 parameters of `model` that autocast to `dtype` would cast at each call.

    Of linear layers and LoRA's; layers of other PEFT methods may use their parameters in other ways and are left.
    """
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    left = tuple(f"{name}." for name, layer in adapted.items() if not _is_plain_lora(layer))
    return {
        f"{name}.{own}": parameter.detach().to(dtype)
        for name, module in model.named_modules()
        if _is_float_linear(module) and not name.startswith(left)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dtype == torch.float32
    }


def _until_all_ended(ids: torch.Tensor, eos: int) -> int:
    """After how many of the tokens [B, N] every row has ended."""
    ended = ((ids == eos).cumsum(dim=1) > 0).all(dim=0)
    return int(ended.int().argmax()) + 1 if ended.any() else ids.shape[1]


def captured(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """`step`, which is run a few times, as a CUDA graph; RuntimeError if it cannot be captured.

    Other threads may use the device meanwhile.
    """
    stream, graph, pool = torch.cuda.Stream(device), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):  # which `torch.cuda.graph` does not leave if a capture fails
            step()  # libraries set themselves up
            with _waiting_is_an_error():  # and could not be captured, so that most failures come before a capture
                step()
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                step()
    except RuntimeError:
        _failed_graphs.append(graph)
        with suppress(RuntimeError):  # where the capture was cut off, random numbers and the allocator would go on with it
            graph.reset()
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        raise
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """RuntimeError if torch waits for the device inside the block."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
