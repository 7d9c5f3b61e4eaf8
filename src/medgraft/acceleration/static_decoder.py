"""A BLIP text decoder that decodes greedily with a key/value cache of fixed size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.func import functional_call
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel
from transformers.pytorch_utils import Conv1D

from medgraft.acceleration.cuda_graph import captured

_CHECK_EVERY = 8  # tokens between two questions whether every caption has ended
_LENGTH_MULTIPLE = 16  # of the cache: attention kernels want masks whose rows are aligned


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
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types here
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
    return states.view(*states.shape[:-1], heads, -1).transpose(1, 2)


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _is_float_linear(module: nn.Module) -> bool:
    """Whether `module` multiplies by a matrix that is not quantised."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    weight: torch.Tensor = module.weight
    return weight.is_floating_point() and not hasattr(weight, "quant_state")


def _rounds_inputs(module: nn.Module) -> bool:
    """Whether a layer reads its inputs in the dtype of autocast, so that rounding them once before changes nothing."""
    base: Any = getattr(module, "base_layer", None)
    return _is_float_linear(module) if base is None else _is_plain_lora(module) and _is_float_linear(base)


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
