"""Clipping in the optimiser's own loop, against torch's: the norm, the step, and what the Trainer makes of it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from medgraft.benchmark import execute
from medgraft.config import run_config
from medgraft.training import clipping, trainer
from medgraft.training.clipping import clip_in_step, gradient_norm, takes_factor


def _parameters(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (11,), (2, 3, 4), ())]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    return made


@pytest.mark.parametrize("piece", [1, 4, 1 << 18])
def test_the_norm_is_torchs(monkeypatch, piece):
    monkeypatch.setattr(clipping, "_PIECE", piece)
    gradients = [p.grad for p in _parameters()] + [torch.randn(6, 4).t()]
    torch.testing.assert_close(gradient_norm(gradients), get_total_norm(gradients))


def test_a_large_gradient_is_summed_in_pieces():
    gradient = torch.full((1 << 25,), 1e-3)
    # the narrower the CPU's vectors, the longer the sums in fp32
    assert gradient_norm([gradient]).item() == pytest.approx(1e-3 * 2**12.5, rel=1e-4)


@pytest.mark.parametrize("scale", [0.01, 100.0], ids=["below", "above"])
def test_a_step_is_that_of_clipped_gradients(scale):
    ours, theirs = _parameters(scale), _parameters(scale)
    mine, other = (torch.optim.AdamW(made, lr=0.1, fused=True) for made in (ours, theirs))
    for factor in (1.0, 3.0, 0.001):  # the last is below in both cases: an earlier factor must not stay
        for parameter in (*ours, *theirs):
            parameter.grad *= factor
        norm = gradient_norm([p.grad for p in ours])
        clip_in_step(mine, norm, 1.0)
        assert clip_grad_norm_(theirs, 1.0).item() == pytest.approx(norm.item(), rel=1e-6)
        mine.step()
        other.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(a.grad, b.grad)
        assert get_total_norm([p.grad for p in ours]).item() <= 1 + 1e-5


def test_only_fused_optimisers_and_plain_gradients_take_it():
    parameters = _parameters()
    gradients = [p.grad for p in parameters]
    assert takes_factor(torch.optim.AdamW(parameters, fused=True), gradients)
    assert not takes_factor(torch.optim.AdamW(parameters), gradients)
    assert not takes_factor(torch.optim.AdamW(parameters, fused=True), [g.bfloat16() for g in gradients])
    assert not takes_factor(torch.optim.AdamW(parameters, fused=True), [])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_is_the_same_both_ways(blip_folder, phantoms_folder, tmp_path, plugins, monkeypatch, accumulated):
    steps = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulated, "bf16": "false"}
    settings = {**steps, "max_grad_norm": 0.05, "learning_rate": 1e-2}
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy="full", data=f"roco:{phantoms_folder}", max_images=12,
        overrides=[f"train.{key}={value}" for key, value in settings.items()],
    )  # fmt: skip
    ordinary_step, ordinary_choice = torch.optim.AdamW.step, takes_factor
    losses, norms = {}, {True: [], False: []}
    for way, seen in norms.items():

        def step(self, *args, way=way, seen=seen, **options):
            assert (getattr(self, "grad_scale", None) is not None) is way
            ordinary_step(self, *args, **options)
            gradients = [p.grad.double() for group in self.param_groups for p in group["params"] if p.grad is not None]
            seen.append(get_total_norm(gradients).item())

        monkeypatch.setattr(torch.optim.AdamW, "step", step)
        monkeypatch.setattr(trainer, "takes_factor", lambda *given, way=way: ordinary_choice(*given) and way)
        record = execute(config, tmp_path / str(way), plugins=plugins, evaluate=False).record
        losses[way] = record.train_loss
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert norms[True] == pytest.approx([0.05] * 4, rel=1e-4)
    assert norms[False] == pytest.approx([0.05] * 4, rel=1e-3)
