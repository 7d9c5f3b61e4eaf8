"""BLIP's loss on packed captions: no work for padding, and cross-attention without keys and values where that is faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from medgraft.acceleration.blip_loss import all_attention_is, install_loss
from medgraft.acceleration.cross_attention import absorbed_attention, saves_products
from medgraft.acceleration.effective_weight import effective_weight
from medgraft.acceleration.packed_captions import IGNORED, PackedBatch, fill, pack
from medgraft.acceleration.self_attention import StepwiseBlipTextSelfAttention
from medgraft.acceleration.swap import Undo
from medgraft.backbones import Backbone, TextBatch
from medgraft.backbones.blip import BlipBackbone
from medgraft.backbones.blip_sdpa import SdpaBlipTextSelfAttention

_TOKENS_MULTIPLE = 32  # few different lengths, at the cost of up to 31 filler tokens


class PackedBlipTextSelfAttention(StepwiseBlipTextSelfAttention):
    """Attention that takes packed tokens if its mask is a PackedBatch; returns (context, None)."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: torch.Tensor | None = None,
        *rest: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in transformers."""
        if not isinstance(attention_mask, PackedBatch):
            return super().forward(hidden_states, attention_mask, encoder_hidden_states, *rest, **kwargs)
        return self._packed(hidden_states, encoder_hidden_states, attention_mask), None

    def _packed(self, tokens: torch.Tensor, images: torch.Tensor | None, batch: PackedBatch) -> torch.Tensor:
        """The context [1, N, C] of packed `tokens` [1, N, C]: causal self-attention, or cross-attention to their image."""
        query, mask = self.query(tokens), None
        dropout = self.dropout.p if self.training else 0.0
        if images is not None and not dropout:
            key, value, heads = effective_weight(self.key), effective_weight(self.value), self.num_attention_heads
            if key is not None and value is not None and saves_products(key, value, images, batch.lengths, heads):
                rows = self.heads(query)[0]
                context = absorbed_attention(rows, images, key, value, batch, self.attention_head_size**-0.5)
                return context.transpose(0, 1).reshape(query.shape)
        states = tokens if images is None else images
        keys, values = self.key(states), self.value(states)
        if images is None:
            keys, values, mask = batch.padded(keys), batch.padded(values), batch.causal_mask
        query, keys, values = self.heads(batch.padded(query)), self.heads(keys), self.heads(values)
        return batch.packed(self.attend(query, keys, values, mask, dropout).transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class PackedLoss:
    """Replaces a backbone's method `loss`."""

    backbone: BlipBackbone

    def __call__(self, features: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """See Backbone.loss."""
        decoder = self.backbone.model.text_decoder
        hooked = decoder.get_input_embeddings()._forward_hooks  # NEFTune's expects rows of captions
        if features.device.type != "cpu" or hooked or not all_attention_is(decoder, PackedBlipTextSelfAttention):
            return type(self.backbone).loss(self.backbone, features, text)
        multiple = _TOKENS_MULTIPLE if torch.is_autocast_enabled("cpu") else 1
        batch = pack(text, multiple)
        hidden = decoder.bert.encoder(
            decoder.bert.embeddings(batch.input_ids, position_ids=batch.position_ids),
            attention_mask=batch,
            encoder_hidden_states=features,
            encoder_attention_mask=batch.over(features),
        ).last_hidden_state[0]  # [N, C]
        labelled = (batch.targets != IGNORED).nonzero()[:, 0]
        filler = -len(labelled) % multiple  # copies of the first token, without labels
        logits = decoder.cls(hidden[fill(labelled, filler)])  # [labels and filler, V]
        smoothing = self.backbone.config.text_config.label_smoothing
        return cross_entropy(logits.float(), fill(batch.targets[labelled], filler, IGNORED), label_smoothing=smoothing)


def install(backbone: Backbone) -> Undo | None:
    """Install on a BLIP whose `loss` is not overridden; its decoder's attention is replaced too."""
    replaced = (BlipTextSelfAttention, SdpaBlipTextSelfAttention, StepwiseBlipTextSelfAttention)
    return install_loss(backbone, PackedLoss, PackedBlipTextSelfAttention, replaced)
