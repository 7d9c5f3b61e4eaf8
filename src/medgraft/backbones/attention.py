"""Fused attention for BLIP, whose two towers compute attention step by step in transformers 5.

`use_sdpa` gives every attention module of a loaded BLIP the same computation through
`torch.nn.functional.scaled_dot_product_attention`, or what is quicker than that on a CPU; `eager_attention` restores the
original for as long as attention weights are wanted. Parameters, module names and checkpoints stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from medgraft.backbones.absorbed_attention import absorbed_attention, pays
from medgraft.backbones.blocked_attention import blocked_attention, torch_forward_is_quick
from medgraft.backbones.packing import Packing
from medgraft.projection import projection_of


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """softmax(query key^T * scale + mask) value for [B, H, T, D] tensors, by the quicker of two equal computations.

    `causal`, for an accelerator, is a mask that leaves each position those up to itself, without a tensor.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if causal:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scale)
    if mask is not None:
        mask = mask.to(device=query.device, dtype=query.dtype)
    if fused_is_quick(query):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    scores = query @ key.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=-1).to(value.dtype)
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    return weights @ value


def fused_is_quick(query: torch.Tensor) -> bool:
    """Whether torch's fused attention is the quickest: but for bf16 on a CPU, whose backward pass it is slow at."""
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return not slow or (torch_forward_is_quick() and not torch.is_grad_enabled())


class CausalMask:
    """Stands in a mask's place: each position attends to those up to itself, computed without a tensor of masks."""


class SdpaBlipAttention(BlipAttention):
    """The vision tower's self-attention; returns (output [B, T, C], None)."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:  # transformers' signature
        """As in transformers, without the weights."""
        batch, length, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, length, 3, self.num_heads, self.head_dim)
        heads = qkv.permute(2, 0, 3, 1, 4)  # queries, keys and values: [3, B, H, T, D]
        dropout = self.dropout.p if self.training else 0.0
        if dropout or fused_is_quick(heads):
            query, key, value = heads
            context = attend(query, key, value, dropout=dropout, scale=self.scale)
        else:
            context = blocked_attention(heads, self.scale)
        return self.projection(context.transpose(1, 2).reshape(batch, length, width)), None


class SdpaBlipTextSelfAttention(BlipTextSelfAttention):
    """The decoder's self- and cross-attention; returns (context [B, T, C], None)."""

    def forward(  # transformers' signature
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | Packing | CausalMask | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """As in transformers, without the weights; of packed words if there is a packing in the mask's place."""
        if isinstance(attention_mask, Packing):
            return self._packed(hidden_states, encoder_hidden_states, attention_mask), None
        batch, length, _ = hidden_states.shape
        query = self._heads(self.query(hidden_states))
        crossing = encoder_hidden_states is not None
        causal = isinstance(attention_mask, CausalMask)
        mask = encoder_attention_mask if crossing else None if isinstance(attention_mask, CausalMask) else attention_mask
        key, value = self._keys_and_values(hidden_states, encoder_hidden_states, past_key_values)
        dropout = self.dropout.p if self.training else 0.0
        context = attend(query, key, value, mask=mask, dropout=dropout, causal=causal)
        return context.transpose(1, 2).reshape(batch, length, self.all_head_size), None

    def _packed(self, words: torch.Tensor, images: torch.Tensor | None, packing: Packing) -> torch.Tensor:
        """What packed `words` [1, N, C] take from the words of their caption up to themselves, or from their image."""
        query, mask = self.query(words), None
        dropout = self.dropout.p if self.training else 0.0
        if images is not None and not dropout:
            key, value, heads = projection_of(self.key), projection_of(self.value), self.num_attention_heads
            if key is not None and value is not None and pays(key, value, images, packing.lengths, heads):
                rows = self._heads(query)[0]
                context = absorbed_attention(rows, images, key, value, packing, self.attention_head_size**-0.5)
                return context.transpose(0, 1).reshape(query.shape)
        states = words if images is None else images
        keys, values = self.key(states), self.value(states)
        if images is None:
            keys, values, mask = packing.padded(keys), packing.padded(values), packing.causal_mask
        query, keys, values = self._heads(packing.padded(query)), self._heads(keys), self._heads(values)
        return packing.packed(attend(query, keys, values, mask=mask, dropout=dropout).transpose(1, 2).flatten(2))

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        heads = states.view(*states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        return heads.transpose(1, 2)  # [B, H, T, D]

    def _keys_and_values(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        crossing = encoder_hidden_states is not None
        store = cache
        if isinstance(cache, EncoderDecoderCache):
            store = cache.cross_attention_cache if crossing else cache.self_attention_cache
            if crossing and cache.is_updated.get(self.layer_idx):  # the image's keys do not change from word to word
                return store.layers[self.layer_idx].keys, store.layers[self.layer_idx].values
        states = encoder_hidden_states if encoder_hidden_states is not None else hidden_states
        key, value = self._heads(self.key(states)), self._heads(self.value(states))
        if store is not None:
            key, value = store.update(key, value, self.layer_idx)
            if crossing and isinstance(cache, EncoderDecoderCache):
                cache.is_updated[self.layer_idx] = True
        return key, value


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BlipAttention: SdpaBlipAttention,
    BlipTextSelfAttention: SdpaBlipTextSelfAttention,
}
_EAGER = {fused: eager for eager, fused in _FUSED.items()}


def use_sdpa(model: nn.Module) -> int:
    """Switch every BLIP attention module of `model` to the fused computation; the number of modules switched."""
    return _switch(model, _FUSED)


def takes_packed_words(model: nn.Module) -> bool:
    """Whether every attention module of a decoder is switched: transformers' own do not know `Packing`."""
    return not any(type(module) is BlipTextSelfAttention for module in model.modules())


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Compute attention step by step inside the block, so that attention weights can be recorded."""
    switched = _switch(model, _EAGER)
    try:
        yield
    finally:
        if switched:
            _switch(model, _FUSED)


def _switch(model: nn.Module, table: dict[type[nn.Module], type[nn.Module]]) -> int:
    count = 0
    for module in model.modules():
        target = table.get(type(module))
        if target is not None:
            module.__class__ = target
            count += 1
    return count
