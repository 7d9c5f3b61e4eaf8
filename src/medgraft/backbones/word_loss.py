"""Cross-entropy over a vocabulary, a few rows at a time.

torch holds the logits in fp32, their logarithms of softmax, and the gradient of both: for 192 words of BERT's vocabulary 94 MB
beside the 12 MB of logits in bf16, in sizes that change from batch to batch. By rows they stay in the cache, and softmax is
computed again going back: 7 ms for 10, both ways, on two threads of a Xeon. On an accelerator they are more, and memory
is what is saved, at the peak of a step: 125 MB of logits in bf16 are kept for 2,048 positions, without 250 in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from medgraft.backbones.packing import IGNORED

_VALUES = 1 << 18  # at a time: 1 MB in fp32
_VALUES_ON_ACCELERATOR = 1 << 25  # 134 MB


def word_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of `logits` [N, V] in fp32 over the `labels` [N] that are not IGNORED, a scalar."""
    loss: torch.Tensor = _WordLoss.apply(logits, labels, smoothing)  # type: ignore[no-untyped-call]
    return loss


class _WordLoss(torch.autograd.Function):
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
            factor = torch.where(y == IGNORED, 0, scale)[:, None]
            if share.device.type == "cpu":
                part.copy_(torch.mul(share, factor, out=share))
            else:  # multiplied and rounded at once
                torch.mul(share, factor, out=part)
        return result, None, None


def _by_rows(logits: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """A few rows of `logits` [N, V] and of each of `others` [N, ...] at a time."""
    values = _VALUES if logits.device.type == "cpu" else _VALUES_ON_ACCELERATOR
    count = max(1, values // logits.shape[1])
    return zip(*(torch.split(rows, count) for rows in (logits, *others)), strict=True)
