"""BLIP's attention with `scaled_dot_product_attention`, on any device; transformers 5 has only eager attention for BLIP.

Parameters, module names and checkpoints are transformers'. `SDPA` maps each class to its replacement.
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
from transformers.utils.output_capturing import _active_collector


class SdpaBlipAttention(BlipAttention):
    """The vision tower's self-attention; returns (output [B, T, C], None or weights)."""

    eager = False

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in transformers, but returns attention weights only if they are asked for."""
        if self.eager or _weights_are_wanted():
            eager: tuple[torch.Tensor, torch.Tensor] = super().forward(hidden_states, **kwargs)
            return eager
        batch, length, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, length, 3, self.num_heads, self.head_dim)
        context = self.attend(qkv.permute(2, 0, 3, 1, 4), self.dropout.p if self.training else 0.0)
        return self.projection(context.transpose(1, 2).reshape(batch, length, width)), None

    def attend(self, heads: torch.Tensor, dropout: float) -> torch.Tensor:
        """Attention [B, H, T, D] of queries, keys and values [3, B, H, T, D]."""
        query, key, value = heads
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)


class SdpaBlipTextSelfAttention(BlipTextSelfAttention):
    """The decoder's self- and cross-attention; returns (context [B, T, C], None or weights)."""

    eager = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: Any = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in transformers, but returns attention weights only if they are asked for."""
        if self.eager or _weights_are_wanted():
            eager: tuple[torch.Tensor, torch.Tensor] = super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, past_key_values, **kwargs
            )
            return eager
        query = self.heads(self.query(hidden_states))
        key, value = self._keys_and_values(hidden_states, encoder_hidden_states, past_key_values)
        mask = attention_mask if encoder_hidden_states is None else encoder_attention_mask
        dropout = self.dropout.p if self.training else 0.0
        return self.attend(query, key, value, mask, dropout).transpose(1, 2).flatten(2), None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
    ) -> torch.Tensor:
        """Attention [B, H, T, D] of queries, keys and values with heads split off; `mask` is added to the scores."""
        mask = None if mask is None else mask.to(device=query.device, dtype=query.dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        """[B, T, C] as [B, H, T, D]."""
        return states.view(*states.shape[:-1], self.num_attention_heads, self.attention_head_size).transpose(1, 2)

    def _keys_and_values(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        crossing = encoder_hidden_states is not None
        store = cache
        if isinstance(cache, EncoderDecoderCache):
            store = cache.cross_attention_cache if crossing else cache.self_attention_cache
            if crossing and cache.is_updated.get(self.layer_idx):  # the image's keys are the same for all tokens
                return store.layers[self.layer_idx].keys, store.layers[self.layer_idx].values
        states = encoder_hidden_states if encoder_hidden_states is not None else hidden_states
        key, value = self.heads(self.key(states)), self.heads(self.value(states))
        if store is not None:
            key, value = store.update(key, value, self.layer_idx)
            if crossing and isinstance(cache, EncoderDecoderCache):
                cache.is_updated[self.layer_idx] = True
        return key, value


def _weights_are_wanted() -> bool:
    """Whether the model runs with `output_attentions`, which transformers does not pass to BLIP's text layers."""
    wanted = _active_collector.get()
    return wanted is not None and ("attentions" in wanted or "cross_attentions" in wanted)


SDPA: dict[type[nn.Module], type[nn.Module]] = {
    BlipAttention: SdpaBlipAttention,
    BlipTextSelfAttention: SdpaBlipTextSelfAttention,
}


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Make these modules use transformers' eager attention inside the block, so that they return attention weights."""
    fused: list[Any] = [m for m in model.modules() if isinstance(m, SdpaBlipAttention | SdpaBlipTextSelfAttention)]
    before = [module.eager for module in fused]
    for module in fused:
        module.eager = True
    try:
        yield
    finally:
        for module, was in zip(fused, before, strict=True):
            module.eager = was
