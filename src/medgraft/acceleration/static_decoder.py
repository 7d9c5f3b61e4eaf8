"""Greedy decoding of a BLIP text decoder with a static key/value cache."""

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

from medgraft.acceleration.capture import captured

_CHECK_EVERY = 8  # tokens between two checks whether every caption has ended
_LENGTH_MULTIPLE = 16  # of the cache length: attention kernels need aligned mask rows


class StaticDecoder:
    """A BLIP text decoder with buffers for up to B images and `length` tokens.

    `features` [B, S, C] set the shape and dtype of the features that `generate` takes. Autocast has to be the same when
    the object is created and when it is used.
    """

    def __init__(self, decoder: BlipTextLMHeadModel, features: torch.Tensor, length: int, *, eos: int, pad: int):
        self._decoder: Any = decoder
        self._eos, self._pad = eos, pad
        self._device, self._shape, self._dtype = features.device, features.shape, features.dtype
        self._compute_dtype = _autocast_dtype(features.device)
        self._rounded = rounded_parameters(decoder, self._compute_dtype) if self._compute_dtype is not None else {}
        self._max_length = -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        self._graph: torch.cuda.CUDAGraph | None = None
        rows = len(features)
        self._tokens = torch.full((rows, self._max_length), pad, dtype=torch.long, device=self._device)
        masks = torch.full((self._max_length, self._max_length), float("-inf"), device=self._device).triu(1)
        self._masks = masks.to(self._compute_dtype or torch.float32)  # one row per position, added to the scores
        self._position = torch.zeros(1, dtype=torch.long, device=self._device)  # index of the next input token
        self._given = torch.ones(1, dtype=torch.long, device=self._device)  # number of prompt tokens
        self._ended = torch.zeros(rows, dtype=torch.bool, device=self._device)
        layers = len(decoder.bert.encoder.layer)
        self._token_caches = [_TokenCache(self._position, self._max_length) for _ in range(layers)]
        self._image_caches = [_ImageCache() for _ in range(layers)]
        self._cache = EncoderDecoderCache(Cache(layers=list(self._token_caches)), Cache(layers=list(self._image_caches)))
        self._cache.is_updated = dict.fromkeys(range(layers), True)
        self._set_images(features)

    def takes(self, features: torch.Tensor, length: int, eos: int, pad: int) -> bool:
        """Whether `generate` can process such features and `length` tokens in all."""
        return (
            (eos, pad) == (self._eos, self._pad)
            and features.shape[0] <= self._shape[0]
            and features.shape[1:] == self._shape[1:]
            and (features.device, features.dtype) == (self._device, self._dtype)
            and length <= self._max_length
            and _autocast_dtype(self._device) == self._compute_dtype
        )

    @torch.no_grad()
    def capture(self) -> None:
        """Capture a step as a CUDA graph; RuntimeError if that fails."""
        self._position.zero_()
        self._graph = captured(self._step, self._device)

    def free(self) -> None:
        """Release the graph; the buffers are freed with this object."""
        if self._graph is not None:
            torch.cuda.synchronize(self._device)
            self._graph.reset()
        self._graph = None

    @torch.no_grad()
    def generate(self, features: torch.Tensor, input_ids: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """The new tokens [B, N] after `input_ids` [B, T], on the CPU; rows that have ended are padded."""
        rows, given = input_ids.shape
        self._set_images(features)
        self._tokens[:rows, :given] = input_ids
        self._position.zero_()
        self._given.fill_(given)
        self._ended.zero_()
        self._ended[rows:] = True
        checks: deque[Callable[[], bool]] = deque()
        for count in range(1, given + max_new_tokens):
            self._step() if self._graph is None else self._graph.replay()
            if count >= given and count % _CHECK_EVERY == 0:
                checks.append(self._check_all_ended())
                # on CUDA wait for the check before this one, so that the device still has work queued meanwhile
                if len(checks) > (self._device.type == "cuda") and checks.popleft()():
                    break
        ids = self._tokens[:rows, given : given + max_new_tokens].cpu()
        return ids[:, : _until_all_ended(ids, self._eos)]

    def _step(self) -> None:
        """Process the token at the current position and write the next one, unless that belongs to the prompt."""
        inputs = {
            "input_ids": self._tokens.index_select(1, self._position),
            "attention_mask": self._masks.index_select(0, self._position)[None, None],  # [1, 1, 1, L]
            "position_ids": self._position[None],
            "encoder_hidden_states": self._tokens,  # a placeholder: its keys and values come from the cache
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
        """Compute the images' keys and values, once for all tokens."""
        rounded = features if self._compute_dtype is None else features.to(self._compute_dtype)
        for layer, image in zip(self._decoder.bert.encoder.layer, self._image_caches, strict=True):
            attention = layer.crossattention.self
            inputs = [rounded if _rounds_inputs(module) else features for module in (attention.key, attention.value)]
            heads = attention.num_attention_heads
            image.set(_by_heads(attention.key(inputs[0]), heads), _by_heads(attention.value(inputs[1]), heads))

    def _autocast(self) -> AbstractContextManager[object]:
        """The caller's autocast without its weight cache, whose tensors would be freed while the graph still reads them."""
        if self._compute_dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._compute_dtype, cache_enabled=False)

    def _check_all_ended(self) -> Callable[[], bool]:
        """Queue the check on the device; the result waits for it and tells whether all captions have ended."""
        answer = self._ended.all().to("cpu", non_blocking=True)
        if self._device.type != "cuda":
            return lambda: bool(answer)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types here
        event.record()

        def wait() -> bool:
            event.synchronize()
            return bool(answer)

        return wait


class _TokenCache(CacheLayerMixin):
    """The cached keys and values [B, H, L, D] of a self-attention layer; `update` writes those at `position`."""

    is_compileable = True
    is_sliding = False

    def __init__(self, position: torch.Tensor, max_length: int):
        super().__init__()
        self._position, self._max_length = position, max_length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate zeros: masked values are multiplied by 0, so they must be finite."""
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(rows, heads, self._max_length, width)
        self.values = value_states.new_zeros(rows, heads, self._max_length, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values [B, H, 1, D] of one token and return the whole cache."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys.index_copy_(2, self._position, key_states)
        self.values.index_copy_(2, self._position, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(key length, offset) of the mask."""
        return self._max_length, 0

    def get_seq_length(self) -> int:
        """The fixed length of the cache."""
        return self._max_length

    def get_max_length(self) -> int:
        """The fixed length of the cache."""
        return self._max_length


class _ImageCache(_TokenCache):
    """The keys and values [B, H, S, D] of a cross-attention layer, set once per batch."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0), 0)

    def set(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the keys and values of a batch; the first call fixes the largest batch size."""
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
    """Whether a layer casts its input to autocast's dtype, so that casting it beforehand changes nothing."""
    base: Any = getattr(module, "base_layer", None)
    return _is_float_linear(module) if base is None else _is_plain_lora(module) and _is_float_linear(base)


def _is_plain_lora(layer: nn.Module) -> bool:
    """Whether a PEFT layer is plain LoRA, which uses its matrices only in products; DoRA also takes their norm."""
    return isinstance(layer, LoraLayer) and not getattr(layer, "lora_variant", None)


def rounded_parameters(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Copies in `dtype` of the fp32 parameters of `model` that autocast to `dtype` would cast at each call.

    These are the parameters of linear layers and LoRA. Other PEFT methods may use theirs outside products and are skipped.
    """
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    skipped = tuple(f"{name}." for name, layer in adapted.items() if not _is_plain_lora(layer))
    return {
        f"{name}.{own}": parameter.detach().to(dtype)
        for name, module in model.named_modules()
        if _is_float_linear(module) and not name.startswith(skipped)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dtype == torch.float32
    }


def _until_all_ended(ids: torch.Tensor, eos: int) -> int:
    """The number of the tokens [B, N] after which every row has ended."""
    ended = ((ids == eos).cumsum(dim=1) > 0).all(dim=0)
    return int(ended.int().argmax()) + 1 if ended.any() else ids.shape[1]
