"""Self-attention by blocks of heads: the function that it computes, and its gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from medgraft.backbones import attention
from medgraft.backbones import blocked_attention as blocked


@pytest.fixture(params=[1, 100, 10**6], ids=["a head at a time", "some heads", "all heads"])
def scores_held(request, monkeypatch):
    monkeypatch.setattr(blocked, "_SCORES", request.param)


def _heads(dtype, length=7):
    """Queries, keys and values as a layer hands them on: a view of [B, T, 3, H, D]."""
    layer = torch.randn(2, length, 3, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    return layer.permute(2, 0, 3, 1, 4).requires_grad_()


def _by_steps(heads, scale):
    query, key, value = heads
    return (query @ key.transpose(-1, -2) * scale).softmax(-1) @ value


def test_gradients_are_those_of_the_function(scores_held):
    assert torch.autograd.gradcheck(lambda heads: blocked.blocked_attention(heads, 0.5), _heads(torch.float64))


def test_values_are_torchs_own(scores_held):
    heads = _heads(torch.float64)
    theirs = scaled_dot_product_attention(*heads, scale=0.5)
    torch.testing.assert_close(blocked.blocked_attention(heads, 0.5), theirs)


def test_gradients_lie_as_the_layer_before_has_its_output():
    heads = _heads(torch.bfloat16)
    (gradient,) = torch.autograd.grad(blocked.blocked_attention(heads, 0.5).sum(), heads)
    assert gradient.permute(1, 3, 0, 2, 4).is_contiguous()


@pytest.mark.parametrize("torch_forward", [False, True])
def test_bf16_rounds_as_the_steps_do(scores_held, monkeypatch, torch_forward):
    monkeypatch.setattr(blocked, "torch_forward_is_quick", lambda: torch_forward)
    heads = _heads(torch.bfloat16, 65)
    steps = _by_steps(heads, 0.5)
    output = blocked.blocked_attention(heads, 0.5)
    torch.testing.assert_close(output, steps, rtol=0, atol=0.01 if torch_forward else 0)
    weights = torch.randn_like(steps)
    (ours,) = torch.autograd.grad((output * weights).sum(), heads)
    (theirs,) = torch.autograd.grad((steps * weights).sum(), heads)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("masked", [False, True])
def test_without_gradients_torchs_own_may_be_taken(monkeypatch, masked):
    query, key, value = _heads(torch.bfloat16, 65)
    mask = torch.full((65, 65), -torch.inf).triu(1) if masked else None
    found = []
    for quick in (False, True):
        monkeypatch.setattr(attention, "torch_forward_is_quick", lambda quick=quick: quick)
        with torch.no_grad():
            found.append(attention.attend(query, key, value, mask=mask, scale=0.5))
    torch.testing.assert_close(*found, rtol=0, atol=0.02)


@pytest.mark.parametrize("torch_forward", [False, True])
def test_autocast_does_not_reach_into_it(monkeypatch, torch_forward):
    monkeypatch.setattr(blocked, "torch_forward_is_quick", lambda: torch_forward)
    heads = _heads(torch.bfloat16)
    with torch.autocast("cpu", torch.float16):
        inside = blocked.blocked_attention(heads, 0.5)
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, blocked.blocked_attention(heads, 0.5))
