"""LoRA added up inside its product gives what PEFT's own layers give, and leaves to them what is not plain LoRA."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from medgraft.strategies import lora_sum
from medgraft.strategies.bitsandbytes_layers import HELD
from medgraft.strategies.lora_sum import OneProduct, use_one_product


def _held(layer):
    """As `medgraft` loads it, so that its product is known."""
    layer.__class__ = HELD[type(layer)]
    return layer


LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "conv1d": lambda: Conv1D(40, 24),
    "without bias": lambda: nn.Linear(24, 40, bias=False),
    "int8": lambda: Linear8bitLt(24, 40, has_fp16_weights=False),
    "nf4": lambda: Linear4bit(24, 40, compute_dtype=torch.float32, quant_type="nf4"),
    "held int8": lambda: _held(LAYERS["int8"]()),
    "held nf4": lambda: _held(LAYERS["nf4"]()),
    "held nf4 in bf16": lambda: _held(Linear4bit(24, 40, compute_dtype=torch.bfloat16, quant_type="nf4")),
}


class _Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.before = nn.Linear(24, 24)
        self.layer = layer

    def forward(self, x):
        return self.layer(self.before(x))


def _model(kind, **options):
    torch.manual_seed(0)
    model = _Net(LAYERS[kind]()).to("cpu")
    if "int8" in kind or "nf4" in kind:
        model.layer.weight = model.layer.weight.to("cpu")
    config = LoraConfig(
        target_modules=["layer"], r=6, lora_alpha=9, init_lora_weights=False, fan_in_fan_out=kind == "conv1d", **options
    )
    return get_peft_model(model, config)


def _step(model, x, bf16):
    torch.manual_seed(1)  # for dropout
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(x)
    output.float().square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return output.detach(), x.grad, gradients


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_pefts(kind, options, bf16):
    model = _model(kind, **options)
    x = torch.randn(3, 5, 24)
    output, grad, gradients = _step(model, x, bf16)
    assert use_one_product(model) == 1
    assert isinstance(model.base_model.model.layer, OneProduct)
    again, grad_again, gradients_again = _step(model, x, bf16)
    close = {"rtol": 0.05, "atol": 0.05} if bf16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(again, output, **close)
    torch.testing.assert_close(grad_again / grad.norm(), grad / grad.norm(), **close)
    assert {name.rsplit(".", 2)[0] for name in gradients} == {
        "base_model.model.layer.lora_A", "base_model.model.layer.lora_B",
    }  # fmt: skip
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name] / gradient.norm(), gradient / gradient.norm(), **close)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", LAYERS)
def test_where_the_layers_own_product_is_known_both_are_one(kind, bf16, monkeypatch):
    """Its weights are then those of torch's product, in the dtype that the layer computes in."""
    used = []
    whole = lora_sum._LoraProduct.apply
    monkeypatch.setattr(lora_sum._LoraProduct, "apply", lambda *args: used.append(kind) or whole(*args))
    model = _model(kind)
    use_one_product(model)
    _step(model, torch.randn(3, 5, 24), bf16)
    in_bf16 = {"held int8", "held nf4 in bf16"}  # plain weights are held in bf16 by `prepare_linear`
    in_fp32 = {"linear", "without bias", "nf4", "held int8", "held nf4"}
    assert bool(used) == (kind in (in_bf16 if bf16 else in_fp32))


@pytest.mark.parametrize("kind", ["linear", "int8"])
def test_going_back_inside_autocast_is_as_outside(kind):
    model, x = _model(kind), torch.randn(5, 24)
    use_one_product(model)
    expected = _step(model, x, bf16=False)[2]
    output = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        output.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0.02, atol=0.02 * float(expected[name].abs().max()))


def test_trained_biases_have_pefts_gradient():
    model, x = _model("linear", bias="lora_only"), torch.randn(3, 5, 24)
    gradients = _step(model, x, bf16=False)[2]
    use_one_product(model)
    name = next(name for name in gradients if name.endswith("bias"))
    torch.testing.assert_close(_step(model, x, bf16=False)[2][name], gradients[name])


def test_the_gradient_is_that_of_the_function():
    model = _model("linear").double()
    use_one_product(model)
    layer = model.base_model.model.layer
    parameters = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)

    def output(x, a, b):
        return torch.func.functional_call(layer, {"lora_A.default.weight": a, "lora_B.default.weight": b}, (x,))

    assert torch.autograd.gradcheck(output, (torch.randn(4, 24, dtype=torch.float64, requires_grad=True), *parameters))


def test_in_bf16_the_sum_is_rounded_once():
    model = _model("linear")
    x = torch.randn(400, 24)
    exact = model(x)
    peft = (_step(model, x, True)[0] - exact).abs().mean()
    use_one_product(model)
    assert (_step(model, x, True)[0] - exact).abs().mean() < peft


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_what_is_more_than_lora_is_left_to_peft(options):
    model = _model("linear", **options)
    x = torch.randn(2, 24)
    before = model(x)
    use_one_product(model)
    assert torch.equal(model(x), before)


def test_disabled_merged_and_several_adapters():
    model = _model("linear")
    use_one_product(model)
    x = torch.randn(2, 24)
    with_lora = model(x)
    bare = model.base_model.model.layer.base_layer(model.base_model.model.before(x))
    with model.disable_adapter():
        assert torch.equal(model(x), bare)
    assert not torch.allclose(with_lora, bare)
    model.merge_adapter()
    torch.testing.assert_close(model(x), with_lora)
    model.unmerge_adapter()
    model.add_adapter("second", LoraConfig(target_modules=["layer"], r=2, init_lora_weights=False))
    model.set_adapter("second")
    second = model(x)
    model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(model(x), with_lora + second - bare)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", LAYERS)
def test_without_gradients_the_bits_are_the_same(kind, bf16):
    model, x = _model(kind), torch.randn(3, 5, 24)
    use_one_product(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(x)
        with torch.no_grad():
            assert torch.equal(model(x), output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_in_8_bits_are_unpacked_to_bitsandbytes_bits(dtype):
    layer = Linear8bitLt(24, 700, has_fp16_weights=False, bias=False)  # more rows than are unpacked at a time
    layer.weight = layer.weight.to("cpu")
    layer.train()
    unpacked = layer(torch.eye(24, dtype=dtype)).t()  # in training bitsandbytes multiplies by them
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert torch.equal(_held(layer).as_projection().weight(), unpacked)
