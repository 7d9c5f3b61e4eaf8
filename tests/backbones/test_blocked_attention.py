"""Attention by blocks of heads: the function that it computes, and its gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from medgraft.backbones import attention
from medgraft.backbones import blocked_attention as blocked
from medgraft.backbones.attention import attend


@pytest.fixture(params=[1, 100, 10**6], ids=["a head at a time", "some heads", "all heads"])
def scores_held(request, monkeypatch):
    monkeypatch.setattr(blocked, "_SCORES", request.param)


def _inputs(dtype, queries=7, keys=9):
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(2, length, 3, 4, generator=generator).to(dtype).transpose(1, 2) for length in (queries, keys, keys))
    return [tensor.requires_grad_() for tensor in made]


def test_gradients_are_those_of_the_function(scores_held):
    assert torch.autograd.gradcheck(lambda *qkv: blocked.blocked_attention(*qkv, 0.5), _inputs(torch.float64))


def test_values_are_torchs_own(scores_held):
    qkv = _inputs(torch.float64)
    theirs = scaled_dot_product_attention(*qkv, scale=0.5)
    torch.testing.assert_close(blocked.blocked_attention(*qkv, 0.5), theirs)


@pytest.mark.parametrize("torch_forward", [False, True])
def test_bf16_rounds_as_the_steps_do(scores_held, monkeypatch, torch_forward):
    monkeypatch.setattr(blocked, "torch_forward_is_quick", lambda: torch_forward)
    query, key, value = _inputs(torch.bfloat16, 65, 65)
    steps = (query @ key.transpose(-1, -2) * 0.5).softmax(-1) @ value
    output = attend(query, key, value, scale=0.5)
    torch.testing.assert_close(output, steps, rtol=0, atol=0.01 if torch_forward else 0)
    weights = torch.randn_like(steps)
    ours = torch.autograd.grad((output * weights).sum(), (query, key, value))
    theirs = torch.autograd.grad((steps * weights).sum(), (query, key, value))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("masked", [False, True])
def test_without_gradients_torchs_own_may_be_taken(monkeypatch, masked):
    query, key, value = _inputs(torch.bfloat16, 65, 65)
    mask = torch.full((65, 65), -torch.inf).triu(1) if masked else None
    found = []
    for quick in (False, True):
        monkeypatch.setattr(attention, "torch_forward_is_quick", lambda quick=quick: quick)
        with torch.no_grad():
            found.append(attention.attend(query, key, value, mask=mask, scale=0.5))
    torch.testing.assert_close(*found, rtol=0, atol=0.02)


def test_autocast_does_not_reach_into_it():
    query, key, value = _inputs(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attend(query, key, value)
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, attend(query, key, value))
