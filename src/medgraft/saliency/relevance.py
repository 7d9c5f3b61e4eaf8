"""Relevance of image tokens to words from attention weights: rollout, and weighting by gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def rollout(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, section 3): [B, S, S] from weights [B, H, S, S] a layer.

    Averages heads, and mixes each layer half with the residual path; row s holds the shares of the inputs in output token s.
    """
    joint = _eye(layers[0])
    for weights in layers:
        joint = (weights.float().mean(1) / 2 + _eye(weights) / 2) @ joint
    return joint


def weighted(weights: torch.Tensor, gradient: torch.Tensor | None) -> torch.Tensor:
    """Chefer et al. 2021 (arXiv 2103.15679), equation 5: the mean over heads of max(gradient * weights, 0), [B, Q, K]."""
    if gradient is None:  # the target does not depend on this layer
        return torch.zeros_like(weights[:, 0], dtype=torch.float32)
    return (gradient.float() * weights.float()).clamp(min=0).mean(1)


def self_relevance(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Equation 6: R = I, then R += A R, over layers of `weighted` self-attention [B, S, S]."""
    relevance = torch.eye(layers[0].shape[-1], device=layers[0].device).expand_as(layers[0]).clone()
    for weights in layers:
        relevance = relevance + weights @ relevance
    return relevance


def cross_relevance(text: Sequence[torch.Tensor], cross: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """Relevance [B, T, S] of image tokens to words in a decoder, equations 6, 7 and 10.

    `text` are `weighted` self-attentions [B, T, T] and `cross` cross-attentions [B, T, S], one of each a layer; `image` is
    the vision tower's own relevance [B, S, S].
    """
    image = normalised(image)
    words = torch.eye(text[0].shape[-1], device=text[0].device).expand_as(text[0]).clone()
    both = torch.zeros_like(cross[0])
    for own, across in zip(text, cross, strict=True):
        words, both = words + own @ words, both + own @ both
        both = both + normalised(words).transpose(1, 2) @ across @ image
    return both


def normalised(relevance: torch.Tensor) -> torch.Tensor:
    """Equations 8 and 9: rows, without the identity, are scaled to sum to 1, and the identity is added again."""
    eye = torch.eye(relevance.shape[-1], device=relevance.device)
    added = relevance - eye
    total = added.sum(-1, keepdim=True)
    return torch.where(total > 0, added / total.clamp(min=1e-30), torch.zeros_like(added)) + eye


def _eye(weights: torch.Tensor) -> torch.Tensor:
    return torch.eye(weights.shape[-1], device=weights.device).expand(weights.shape[0], -1, -1)
