"""The functions under the kernels, each against its definition: gradients, packed rows, one matrix for a layer."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import IA3Config, LoraConfig, get_peft_model
from peft.tuners import lora as peft_lora
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.pytorch_utils import Conv1D

from medgraft.acceleration import self_attention
from medgraft.acceleration.cross_attention import absorbed_attention
from medgraft.acceleration.effective_weight import EffectiveWeight, effective_weight
from medgraft.acceleration.lora import FusedLora, FusedLoraLinear
from medgraft.acceleration.packed_captions import pack
from medgraft.acceleration.quantized import _AUTOCAST, FUSED_LORA
from medgraft.acceleration.swap import swap
from medgraft.backbones import TextBatch

TABLE = {peft_lora.Linear: FusedLoraLinear, **FUSED_LORA, **_AUTOCAST}


def _captions(*lengths):
    """A batch of captions with so many tokens that predict a label, behind a start token."""
    ids = torch.zeros(len(lengths), max(lengths) + 1, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, : length + 1] = torch.arange(1, length + 2)
    return TextBatch(ids, (ids > 0).long(), ids.masked_fill(ids < 2, -100))


def test_packing_leaves_out_padding_and_tokens_that_predict_nothing():
    ids = torch.tensor([[1, 2, 3, 4, 0], [1, 5, 6, 7, 8], [1, 9, 0, 0, 0]])
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 5, 6, 7, 8], [-100, 9, -100, -100, -100]])  # "2" is a prompt
    batch = pack(TextBatch(ids, (ids > 0).long(), labels))
    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 5, 6, 7, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    assert batch.targets.tolist() == [-100, 3, 4, 5, 6, 7, 8, 9]
    assert [batch.targets[rows].tolist() for rows in batch.slices()] == [[-100, 3, 4], [5, 6, 7, 8], [9]]
    states = torch.rand(1, 8, 2)
    assert batch.padded(states)[[0, 1, 2], [2, 3, 0]].equal(states[0, [2, 6, 7]])
    assert not batch.padded(states)[2, 1:].any()


@pytest.mark.parametrize("multiple", [1, 4, 7])
def test_filler_brings_the_tokens_to_a_multiple_and_is_read_by_nothing(multiple):
    batch = pack(_captions(3, 1), multiple)
    filler = -4 % multiple
    assert batch.input_ids.tolist() == [[1, 2, 3, 1] + [0] * filler]
    assert batch.targets.tolist() == [2, 3, 4, 2] + [-100] * filler
    states = torch.rand(1, 4 + filler, 2)
    again = batch.packed(batch.padded(states))
    assert again[:, :4].equal(states[:, :4]) and not again[:, 4:].any()


@pytest.mark.parametrize("scores", [1, 100, 10**6], ids=["a head at a time", "some heads", "all heads"])
@pytest.mark.parametrize("torch_forward", [False, True])
def test_blocked_attention(scores, torch_forward, monkeypatch):
    monkeypatch.setattr(self_attention, "_SCORES", scores)
    monkeypatch.setattr(self_attention, "torch_forward_is_quick", lambda: torch_forward)
    layer = torch.randn(2, 7, 3, 3, 4, dtype=torch.float64)
    heads = layer.permute(2, 0, 3, 1, 4).requires_grad_()
    blocked = self_attention.blocked_attention
    torch.testing.assert_close(blocked(heads, 0.5), scaled_dot_product_attention(*heads, scale=0.5))
    assert torch.autograd.gradcheck(lambda x: blocked(x, 0.5), heads)


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("multiple", [1, 4])
def test_absorbed_attention(low_rank, multiple):
    torch.manual_seed(0)
    (width, heads, lengths), double = (6, 3, (2, 1, 3)), torch.float64

    def tensor(*shape):
        return torch.randn(*shape, dtype=double, requires_grad=True)

    batch = pack(_captions(*lengths), multiple)
    query, images = tensor(heads, sum(lengths) + batch.filler, width // heads), tensor(3, 4, width)
    weights, bias = [tensor(width, width), tensor(width, width)], tensor(width)
    low = {"a": tensor(2, width), "b": tensor(width, 2), "scaling": 0.7} if low_rank else {}
    own = EffectiveWeight(lambda: weights[0], (width, width), double, True, **low)

    def absorbed(query, images, key, value, bias):
        matrices = replace(own, weight=lambda: key), replace(own, weight=lambda: value, bias=bias)
        return absorbed_attention(query, images, *matrices, batch, 0.5)[:, : sum(lengths)]

    def defined():
        whole = [w + (0.7 * low["b"] @ low["a"] if low_rank else 0) for w in weights]
        keys, values = ((images @ w.t()).unflatten(-1, (heads, -1)).transpose(1, 2) for w in whole)
        rows = [
            (query[:, where] @ keys[number].transpose(-1, -2) * 0.5).softmax(-1) @ values[number]
            for number, where in enumerate(batch.slices())
        ]
        return torch.cat(rows, dim=1) + bias.view(heads, 1, -1)

    torch.testing.assert_close(absorbed(query, images, *weights, bias), defined())
    assert torch.autograd.gradcheck(absorbed, (query, images, *weights, bias))


LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "conv1d": lambda: Conv1D(40, 24),
    "without bias": lambda: nn.Linear(24, 40, bias=False),
    "int8": lambda: Linear8bitLt(24, 40, has_fp16_weights=False),
    "nf4": lambda: Linear4bit(24, 40, compute_dtype=torch.float32, quant_type="nf4"),
}


def _lora(kind, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24), LAYERS[kind]()).to("cpu")
    if kind in ("int8", "nf4"):
        model[1].weight = model[1].weight.to("cpu")
    config = LoraConfig(
        target_modules=["1"], r=6, lora_alpha=9, init_lora_weights=False, fan_in_fan_out=kind == "conv1d", **options
    )
    return get_peft_model(model, config)


def _step(model, x):
    torch.manual_seed(1)  # for dropout
    x = x.clone().requires_grad_()
    output = model(x)
    output.square().sum().backward()
    gradients = [x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    model.zero_grad()
    return [output.detach(), *gradients]


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}, {"bias": "lora_only"}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_fused_lora_has_pefts_outputs_and_gradients(kind, options):
    if options.get("bias") and kind == "without bias":
        return
    model, x = _lora(kind, **options), torch.randn(3, 5, 24)
    expected = _step(model, x)
    swap(model, TABLE)
    assert isinstance(model.base_model.model[1], FusedLora)
    for ours, theirs in zip(_step(model, x), expected, strict=True):
        torch.testing.assert_close(ours / theirs.norm(), theirs / theirs.norm(), rtol=1e-5, atol=1e-5)
    output = model.eval()(x)
    with torch.no_grad():
        assert torch.equal(model(x), output)


@pytest.mark.parametrize("whole", [True, False], ids=["with the layer's product", "added to it"])
def test_fused_loras_gradient_is_that_of_the_function(whole):
    model = _lora("linear" if whole else "conv1d").double()
    swap(model, TABLE)
    layer = model.base_model.model[1]

    def output(x, a, b):
        return torch.func.functional_call(layer, {"lora_A.default.weight": a, "lora_B.default.weight": b}, (x,))

    x = torch.randn(4, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, layer.lora_A["default"].weight, layer.lora_B["default"].weight))


def test_disabled_merged_and_several_adapters_are_left_to_peft():
    model, x = _lora("linear"), torch.randn(2, 24)
    swap(model, TABLE)
    layer, with_lora = model.base_model.model[1], model(x)
    bare = layer.base_layer(model.base_model.model[0](x))
    with model.disable_adapter():
        assert torch.equal(model(x), bare)
    assert not torch.allclose(with_lora, bare)
    model.merge_adapter()
    torch.testing.assert_close(model(x), with_lora)
    model.unmerge_adapter()
    model.add_adapter("second", LoraConfig(target_modules=["1"], r=2, init_lora_weights=False))
    model.set_adapter("second")
    second = model(x)
    model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(model(x), with_lora + second - bare)


def test_a_layer_is_one_matrix_if_its_product_is_all_it_does():
    torch.manual_seed(0)
    rows = torch.rand(4, 16)

    def adapted(config, base):
        model = get_peft_model(nn.Sequential(base), config)
        swap(model, TABLE)
        return model.base_model.model[0].eval()

    def lora(**options):
        return LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, **options)

    def in_4_bits(width=16):
        layer = Linear4bit(width, 2 * width, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
        layer.support_avx512bf16_for_cpu = False  # as in models of ours: bitsandbytes changes the layout of weights there
        return layer

    dropping = adapted(lora(lora_dropout=0.5), nn.Linear(16, 8))
    layers = [nn.Linear(16, 8), nn.Linear(16, 8, bias=False), in_4_bits(), adapted(lora(), nn.Linear(16, 8)), dropping]
    for layer in [*layers, adapted(lora(), in_4_bits())]:
        found = effective_weight(layer)
        output = found.of_inputs(rows.expand(2, -1, -1)).transpose(0, 1).flatten(1)
        output = output if found.bias is None else output + found.bias
        torch.testing.assert_close(output, layer(rows), rtol=1e-4, atol=1e-5)
    replaced, hooked, merged = nn.Linear(16, 8), nn.Linear(16, 8), adapted(lora(), nn.Linear(16, 8))
    replaced.forward = lambda rows: rows  # as accelerate's hooks replace it
    hooked.register_forward_hook(lambda *_: None)
    merged.merge()
    repacked = in_4_bits(64)
    _convert_weight_packed_for_cpu(repacked.weight.data, repacked.weight.quant_state)
    others = [merged, hooked, replaced, repacked, nn.Conv1d(16, 8, 1), adapted(lora(use_dora=True), nn.Linear(16, 8))]
    others += [adapted(IA3Config(target_modules=["0"], feedforward_modules=[]), nn.Linear(16, 8)), dropping.train()]
    assert [effective_weight(layer) for layer in others] == [None] * len(others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_in_8_bits_are_unpacked_to_bitsandbytes_bits(dtype):
    layer = Linear8bitLt(24, 700, has_fp16_weights=False, bias=False)  # more rows than are unpacked at a time
    layer.weight = layer.weight.to("cpu")
    layer.train()
    unpacked = layer(torch.eye(24, dtype=dtype)).t()  # in training bitsandbytes multiplies by them
    swap(layer, TABLE)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert torch.equal(layer.as_effective_weight().weight(), unpacked)
