"""Gradients of an embedding that shares the output layer's matrix, against torch's own."""

from contextlib import nullcontext

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medgraft.adapter import load_base
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.training.module import CaptioningModule
from medgraft.training.tied_embedding import tied_rows


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def _model(*, tied=True, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, **options), nn.Linear(4, 4), nn.Linear(4, 9))
    if tied:
        model[2].weight = model[0].weight
    return model


def _gradients(model, batches=1):
    ids = torch.tensor([[1, 2, 2, 0], [3, 0, 1, 8]])
    with _Operations() as operations:
        for _ in range(batches):
            nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, operations.names


@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}], ids=["plain", "padding"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("batches", [1, 2])
def test_they_are_the_same_without_a_gradient_of_the_whole_vocabulary(options, bf16, batches):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        expected, usual = _gradients(_model(**options), batches)
        model = _model(**options)
        with tied_rows(model):
            found, operations = _gradients(model, batches)
    dense = "aten.embedding_dense_backward.default"
    assert dense in usual and dense not in operations
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-7, msg=name)
    assert type(model[0]) is nn.Embedding


def test_a_loss_without_the_output_layer_is_refused_rather_than_its_gradient_lost():
    model = _model()
    with tied_rows(model), pytest.raises(RuntimeError, match="untie"):
        model[:2](torch.tensor([[1, 2, 2, 0]])).square().sum().backward()


@pytest.mark.parametrize("options", [{"tied": False}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
def test_embeddings_with_other_gradients_keep_them(options):
    expected, _ = _gradients(_model(**options))
    model = _model(**options)
    with tied_rows(model):
        found, _ = _gradients(model)
    assert all(found[name].equal(gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("name", ["blip", "vit-gpt2"])
def test_those_of_backbones_are_found(name, tiny_folder, plugins):
    kind, folder = tiny_folder(name)
    strategy = get_strategy("encoder-frozen", plugins=plugins)
    backbone = load_base(f"{kind}:{folder}", strategy, plugins=plugins)
    module = CaptioningModule(backbone, apply_strategy(backbone.model, backbone.anatomy, strategy)).eval()  # without dropout
    text = backbone.text_batch(["a nodule.", "a mass in the left lung."], prompt="", max_tokens=32)
    pixels = backbone.pixel_values([Image.new("RGB", (64, 64), color) for color in ("gray", "black")])
    found, dense = [], []
    for rows in (nullcontext(), tied_rows(backbone.model)):
        backbone.model.zero_grad()
        with rows, _Operations() as operations:
            module(text.input_ids, text.attention_mask, text.labels, pixel_values=pixels)["loss"].backward()
        found.append({n: p.grad.clone() for n, p in backbone.model.named_parameters() if p.grad is not None})
        dense.append(sum("embedding_dense" in operation for operation in operations.names))
    assert dense == [2, 1]  # words' and positions', then positions'
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter], gradient, rtol=1e-5, atol=1e-6, msg=parameter)
