"""BLIP's loss on an accelerator, computed at every position: the host need not wait to learn which positions have labels.

Captions are padded on the right, so no label of a causal decoder depends on padding: attention needs only the causal mask,
which fused kernels apply without a tensor. The cross-entropy and its gradient are computed in chunks of rows: for 2,048
positions the backward pass saves 125 MB of bf16 logits, instead of another 250 MB in fp32 and their softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from medgraft.acceleration.blip_loss import all_attention_is, install_loss
from medgraft.acceleration.packed_captions import IGNORED
from medgraft.acceleration.swap import Undo
from medgraft.backbones import Backbone, TextBatch
from medgraft.backbones.blip import BlipBackbone
from medgraft.backbones.blip_sdpa import SdpaBlipTextSelfAttention

_VALUES = 1 << 25  # logits in a chunk: 134 MB in fp32


class CausalMask:
    """Placeholder passed as the attention mask: each position attends to itself and earlier ones."""


class CausalBlipTextSelfAttention(SdpaBlipTextSelfAttention):
    """Attention that accepts a CausalMask as its mask; returns (context, None)."""

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, dropout: float) -> torch.Tensor:
        """See SdpaBlipTextSelfAttention.attend."""
        if isinstance(mask, CausalMask):
            return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        context: torch.Tensor = super().attend(query, key, value, mask, dropout)
        return context


@dataclass(frozen=True)
class CausalLoss:
    """Replaces a backbone's method `loss`."""

    backbone: BlipBackbone

    def __call__(self, features: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """See Backbone.loss."""
        decoder = self.backbone.model.text_decoder
        if not all_attention_is(decoder, CausalBlipTextSelfAttention):
            return type(self.backbone).loss(self.backbone, features, text)
        hidden = decoder.bert.encoder(
            decoder.bert.embeddings(text.input_ids), attention_mask=CausalMask(), encoder_hidden_states=features
        ).last_hidden_state  # [B, T, C]
        targets = torch.cat([text.labels[:, 1:], torch.full_like(text.labels[:, :1], IGNORED)], dim=1)
        smoothing = self.backbone.config.text_config.label_smoothing
        loss: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            decoder.cls(hidden.flatten(0, 1)), targets.flatten(), smoothing
        )
        return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of logits [N, V] in fp32 over the labels [N] that are not IGNORED, in chunks of rows."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.smoothing, ctx.count = smoothing, (labels != IGNORED).sum()
        rows = _by_rows(logits, labels)
        sums = [cross_entropy(x.float(), y, reduction="sum", label_smoothing=smoothing) for x, y in rows]
        mean: torch.Tensor = torch.stack(sums).sum() / ctx.count
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        result, scale = torch.empty_like(logits), gradient / ctx.count
        for x, y, part in _by_rows(logits, labels, result):
            share = torch.softmax(x.float(), -1)
            if ctx.smoothing:
                share -= ctx.smoothing / x.shape[1]
            share.scatter_add_(1, y.clamp(min=0)[:, None], share.new_full((len(y), 1), ctx.smoothing - 1))
            torch.mul(share, torch.where(y == IGNORED, 0, scale)[:, None], out=part)
        return result, None, None


def _by_rows(logits: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Chunks of rows of `logits` [N, V] and of each of `others` [N, ...]."""
    count = max(1, _VALUES // logits.shape[1])
    return zip(*(torch.split(rows, count) for rows in (logits, *others)), strict=True)


def install(backbone: Backbone) -> Undo | None:
    """Install on a BLIP whose `loss` is not overridden; its decoder's attention is replaced too."""
    replaced = (BlipTextSelfAttention, SdpaBlipTextSelfAttention)
    return install_loss(backbone, CausalLoss, CausalBlipTextSelfAttention, replaced)
