"""Linear layers in bf16 on a CPU: torch's outputs and gradients, by quicker products."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear as torchs

from medgraft import linear_product
from medgraft.adapter import load_base
from medgraft.linear_product import linear, parameter_gradients
from medgraft.plugin import PluginManager
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.testing.backbone_checks import CAPTIONS, images
from medgraft.training import CaptioningModule, prepare_linear
from medgraft.training.flops import flop_counter
from medgraft.training.precision import TrainedLinear, TrainedPatchEmbedding

PLUGINS = PluginManager()
SHAPES = [(5, 24, 16), (1030, 24, 96), (1030, 96, 24), (1030, 32, 48)]  # rows, in, out: few, both ways wider, nearly square


@pytest.fixture(params=[True, False], ids=["transposed first", "as it is"])
def transposing(request, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: request.param)  # the way, not the unit


@pytest.mark.parametrize(("rows", "width", "out"), SHAPES)
@pytest.mark.usefixtures("transposing")
def test_gradients_of_parameters_are_the_products(rows, width, out):
    gradient, x = torch.randn(rows, out).bfloat16(), torch.randn(rows, width).bfloat16()
    of_weight, of_bias = parameter_gradients(gradient, x)
    torch.testing.assert_close(of_weight.double(), gradient.double().t() @ x.double(), rtol=2**-8, atol=2**-8)
    torch.testing.assert_close(of_bias.double(), gradient.double().sum(0), rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("known", [True, False], ids=["oneDNN's", "torch's"])
@pytest.mark.parametrize(("rows", "width", "out"), SHAPES)
@pytest.mark.usefixtures("transposing")
def test_a_layer_is_torchs_under_autocast(rows, width, out, known, monkeypatch):
    monkeypatch.setattr(linear_product, "_adds_bias", lambda: known and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    layer, x = nn.Linear(width, out), torch.randn(2, rows // 2, width, requires_grad=True)
    inputs = x, layer.weight, layer.bias
    with torch.autocast("cpu", torch.bfloat16):
        expected = torchs(*inputs)
    output = linear(x.bfloat16(), layer.weight, layer.bias)
    assert torch.equal(output, expected) and output.dtype == torch.bfloat16
    direction = torch.randn_like(output)
    found, wanted = (torch.autograd.grad(y, inputs, direction) for y in (output, expected))
    assert torch.equal(found[0], wanted[0])
    for ours, theirs, parameter in zip(found[1:], wanted[1:], inputs[1:], strict=True):
        assert ours.dtype == parameter.dtype and ours.stride() == parameter.stride()
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("trained", ["weight", "bias", "neither"])
def test_only_what_is_trained_has_a_gradient(trained):
    layer, x = nn.Linear(24, 16), torch.randn(4, 24, requires_grad=True)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == trained)
    linear(x.bfloat16(), layer.weight, layer.bias).float().sum().backward()
    assert x.grad is not None
    assert {name for name, parameter in layer.named_parameters() if parameter.grad is not None} == {trained} - {"neither"}


@pytest.mark.parametrize(("rows", "dtype"), [(5, torch.bfloat16), (1030, torch.float32)])
def test_of_many_rows_the_weight_itself_is_kept(rows, dtype):
    layer, x = nn.Linear(24, 16), torch.randn(rows, 24).bfloat16()
    output = linear(x, layer.weight, layer.bias)
    weight = output.grad_fn.next_functions[0][0].saved_tensors[1]
    assert weight.dtype == dtype and (weight.data_ptr() == layer.weight.data_ptr()) == (dtype == torch.float32)


def test_without_a_bias_it_is_torchs():
    x, weight = torch.randn(3, 24).bfloat16(), torch.randn(16, 24)
    assert torch.equal(linear(x, weight, None), torchs(x, weight.bfloat16()))


def test_its_operations_are_counted():
    layer, x = nn.Linear(24, 16), torch.randn(5, 24, requires_grad=True)
    with flop_counter() as counter:
        linear(x.bfloat16(), layer.weight, layer.bias).float().sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 5 * 24 * 16


@pytest.mark.parametrize("name", ["blip", "blip2-opt", "vit-gpt2", "git"])
def test_full_training_is_as_with_torchs_layers(name, tiny_folder):
    kind, folder = tiny_folder(name)
    plan = get_strategy("full", plugins=PLUGINS)
    results = []
    for prepared in (False, True):
        backbone = load_base(f"{kind}:{folder}", plan, plugins=PLUGINS)
        applied = apply_strategy(backbone.model, backbone.anatomy, plan)
        if prepared:
            prepare_linear(backbone, applied)
            kinds = {type(module) for module in backbone.model.modules()}
            assert {TrainedLinear, TrainedPatchEmbedding} <= kinds
        module = CaptioningModule(backbone, applied, backbone.default_prompt).eval()  # without dropout
        text = backbone.text_batch(CAPTIONS, prompt=backbone.default_prompt, max_tokens=160)
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(text.input_ids, text.attention_mask, text.labels, backbone.pixel_values(images(2)))["loss"]
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])))
    (loss, gradients), (again, others) = results
    torch.testing.assert_close(again, loss, rtol=1e-3, atol=0)  # the patches' products are added up in another order
    assert (gradients - others).norm() < 1e-3 * gradients.norm()


def test_a_trained_layer_is_plain_without_autocast():
    layer, x = nn.Linear(24, 16), torch.randn(5, 24)
    layer.__class__ = TrainedLinear
    assert torch.equal(layer(x), torchs(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.float16):
        assert layer(x).dtype == torch.float16


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(24, 16), (27, 21)], ids=["whole patches", "a rest at the edge"])
def test_patches_are_the_convolutions(size, bias):
    layer, x = nn.Conv2d(3, 10, (8, 4), stride=(8, 4), bias=bias), torch.randn(2, 3, *size, requires_grad=True)
    outcomes = []
    for kind in (nn.Conv2d, TrainedPatchEmbedding):
        layer.__class__ = kind
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
        torch.manual_seed(0)
        outcomes.append((output, *torch.autograd.grad(output, (x, *layer.parameters()), torch.randn(output.shape).bfloat16())))
    for theirs, ours in zip(*outcomes, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-6)
    assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, stride=(8, 4)))  # plain without autocast


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 96, 16, stride=16), nn.Linear(224, 96)], ids=["patches", "linear"])
def test_without_gradients_bits_are_torchs(layer):
    """Those of a loaded package, which has the plain layers."""
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
    layer.__class__ = {nn.Conv2d: TrainedPatchEmbedding, nn.Linear: TrainedLinear}[type(layer)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)
