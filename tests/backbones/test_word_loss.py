"""Cross-entropy by rows is torch's."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from medgraft.backbones import word_loss as module
from medgraft.backbones.packing import IGNORED
from medgraft.backbones.word_loss import word_loss


@pytest.fixture(params=[1, 50 * 3, 1 << 20], ids=["row by row", "three rows", "at once"], autouse=True)
def values(request, monkeypatch):
    monkeypatch.setattr(module, "_VALUES", request.param)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_loss_and_gradient_are_torchs(dtype, smoothing):
    logits = (3 * torch.randn(10, 50)).to(dtype).requires_grad_()
    labels = torch.randint(0, 50, (10,))
    labels[[2, 9]] = IGNORED
    found = word_loss(logits, labels, smoothing)
    expected = cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(7 * loss, logits)[0] for loss in (found, expected))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    assert not ours[2].any() and not ours[9].any()
