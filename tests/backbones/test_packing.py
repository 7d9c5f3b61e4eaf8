"""The loss of packed words, by keys and values or by absorbed projections, against the padded computation."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from bitsandbytes.nn import Linear4bit
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from medgraft.adapter import load_base
from medgraft.backbones import absorbed_attention as absorbed
from medgraft.backbones import attention, blip
from medgraft.backbones.attention import use_sdpa
from medgraft.backbones.base import TextBatch
from medgraft.backbones.blip import BlipBackbone
from medgraft.backbones.packing import Packing, pack
from medgraft.projection import Projection, projection_of
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.strategies.lora_sum import use_one_product
from medgraft.training import prepare_linear

CAPTIONS = [
    "axial ct of the chest showing a nodule.",
    "a mass.",
    "normal brain mri in a 54-year-old man with headache (arrow).",
]
NO_PROJECTION = ("lora-int8 at rest", "dora")  # as sums in 8 bits and norms of whole weights are none


def test_packing_leaves_out_padding_and_words_that_predict_nothing():
    ids = torch.tensor([[1, 2, 3, 4, 0], [1, 5, 6, 7, 8], [1, 9, 0, 0, 0]])
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 5, 6, 7, 8], [-100, 9, -100, -100, -100]])  # "2" is a prompt
    words = pack(TextBatch(ids, (ids > 0).long(), labels))
    assert words.input_ids.tolist() == [[1, 2, 3, 1, 5, 6, 7, 1]]
    assert words.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    assert words.targets.tolist() == [-100, 3, 4, 5, 6, 7, 8, 9]
    packing = words.packing
    assert [words.targets[rows].tolist() for rows in packing.slices()] == [[-100, 3, 4], [5, 6, 7, 8], [9]]
    states = torch.rand(1, 8, 2)
    assert packing.padded(states)[[0, 1, 2], [2, 3, 0]].equal(states[0, [2, 6, 7]])
    assert not packing.padded(states)[2, 1:].any()
    assert packing.packed(packing.padded(states)).equal(states)


@pytest.mark.parametrize("multiple", [1, 4, 7])
def test_filler_brings_the_words_to_a_multiple_and_is_read_by_nothing(multiple):
    ids = torch.tensor([[1, 2, 3, 4], [1, 5, 0, 0]])
    words = pack(TextBatch(ids, (ids > 0).long(), ids.masked_fill(ids < 2, -100)), multiple)
    filler = -4 % multiple
    assert words.input_ids.tolist() == [[1, 2, 3, 1] + [0] * filler]
    assert words.targets.tolist() == [2, 3, 4, 5] + [-100] * filler
    assert words.position_ids.shape == words.input_ids.shape
    states = torch.rand(1, 4 + filler, 2)
    packing = words.packing
    assert packing.padded(states)[[0, 0, 0, 1], [0, 1, 2, 0]].equal(states[0, :4])
    again = packing.packed(packing.padded(states))
    assert again[:, :4].equal(states[:, :4]) and not again[:, 4:].any()


@pytest.mark.parametrize("prompt", ["", "a picture of"])
@pytest.mark.parametrize("chosen", [True, False], ids=["absorbed", "by keys and values"])
def test_filler_changes_neither_loss_nor_gradients(blip_folder, plugins, monkeypatch, chosen, prompt):
    monkeypatch.setattr(attention, "pays", lambda *_: chosen)
    backbone = load_base(f"blip:{blip_folder}", get_strategy("full", plugins=plugins), plugins=plugins)
    text = backbone.text_batch(CAPTIONS, prompt=prompt, max_tokens=64)
    words = pack(text).input_ids.shape[1]
    assert words % 32, "captions that need no filler"
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(3, 17, backbone.config.vision_config.hidden_size, generator=generator)
    found = []
    for multiple in (1, 32):
        monkeypatch.setattr(blip, "WORDS_MULTIPLE", multiple)
        backbone.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = backbone.loss(features, text)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in backbone.model.named_parameters() if p.grad is not None}))
    (loss, gradients), (filled, others) = found
    assert filled == pytest.approx(loss, rel=1e-3)
    for name, gradient in gradients.items():
        if not name.endswith("key.bias"):  # 0 but for rounding
            assert (gradient - others[name]).norm() <= 0.01 * gradient.norm() + 1e-5, name


def _losses_and_gradients(backbone, prompt, rel=1e-6):
    """By packed words, then by padded rows."""
    text = backbone.text_batch(CAPTIONS, prompt=prompt, max_tokens=64)
    generator = torch.Generator().manual_seed(0)
    side = backbone.config.vision_config.image_size
    pixels = torch.randn(len(CAPTIONS), 3, side, side, generator=generator)
    found = []
    for packed in (True, False):
        backbone.model.zero_grad()
        features = backbone.encode(pixels)
        hidden, targets = backbone._packed(features, text) if packed else backbone._padded(features, text)
        wanted = targets != -100
        loss = nn.functional.cross_entropy(backbone.model.text_decoder.cls(hidden[wanted]).float(), targets[wanted])
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in backbone.model.named_parameters() if p.grad is not None}))
        if packed:
            assert backbone.loss(features, text).item() == pytest.approx(loss.item(), rel=rel)
    return found


@pytest.mark.parametrize("prompt", ["", "a picture of"])
@pytest.mark.parametrize("chosen", [True, False], ids=["absorbed", "by keys and values"])
@pytest.mark.parametrize("name", ["full", "encoder-frozen", "lora", "qlora-decoder", "lora-int8", *NO_PROJECTION])
def test_packed_words_have_the_loss_and_gradients_of_padded_ones(blip_folder, plugins, monkeypatch, name, chosen, prompt):
    asked = []
    monkeypatch.setattr(attention, "pays", lambda *_: asked.append(1) or chosen)
    options = {"compute_dtype": "float32"} if name.startswith("q") else {}  # by itself bf16 where the hardware has it
    strategy = get_strategy(name.removesuffix(" at rest"), options, plugins=plugins)
    backbone = load_base(f"blip:{blip_folder}", strategy, plugins=plugins)
    apply_strategy(backbone.model, backbone.anatomy, strategy)
    backbone.model.train(name == "lora-int8")
    torch.manual_seed(0)
    for parameter_name, parameter in backbone.model.named_parameters():
        if "lora_B" in parameter_name:  # which starts at 0, where A has no gradient
            nn.init.normal_(parameter, std=0.02)
    (loss, ours), (expected, theirs) = _losses_and_gradients(backbone, prompt)
    assert bool(asked) == (name not in NO_PROJECTION)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert ours.keys() == theirs.keys() and ours
    for parameter_name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[parameter_name], rtol=2e-3, atol=2e-6, msg=parameter_name)


def test_bf16_differs_by_its_rounding_alone(blip_folder, plugins, monkeypatch):
    monkeypatch.setattr(attention, "pays", lambda *_: True)
    backbone = load_base(f"blip:{blip_folder}", get_strategy("full", plugins=plugins), plugins=plugins)
    with torch.autocast("cpu", torch.bfloat16):
        (loss, ours), (expected, theirs) = _losses_and_gradients(backbone, "", rel=2e-3)
    assert loss == pytest.approx(expected, rel=2e-3)
    for name, gradient in ours.items():
        if not name.endswith("key.bias"):  # 0 but for rounding
            assert (gradient - theirs[name]).norm() <= 0.03 * theirs[name].norm() + 1e-4, name


class Casts(TorchDispatchMode):
    """Counts copies of a float32 tensor of one shape in bf16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        copies = function is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16
        self.count += copies and args[0].shape == self.shape
        return function(*args, **kwargs)


def test_features_are_rounded_once_for_all_layers_to_the_same_bits(blip_folder, plugins, monkeypatch):
    monkeypatch.setattr(attention, "pays", lambda *_: True)
    backbone = load_base(f"blip:{blip_folder}", get_strategy("full", plugins=plugins), plugins=plugins)
    text = backbone.text_batch(CAPTIONS, prompt="", max_tokens=64)
    config = backbone.config
    features = torch.rand(3, 17, config.vision_config.hidden_size).requires_grad_()
    found, counts = [], []
    for over in (Packing.over, lambda packing, images: packing):
        monkeypatch.setattr(Packing, "over", over)
        with torch.autocast("cpu", torch.bfloat16), Casts(features.shape) as casts:
            loss = backbone.loss(features, text)
        trained = [p for p in backbone.model.text_decoder.parameters() if p.requires_grad]
        found.append([loss, *torch.autograd.grad(loss, [features, *trained], allow_unused=True)])
        counts.append(casts.count)
    assert counts == [1, config.text_config.num_hidden_layers]
    assert all(ours.equal(theirs) for ours, theirs in zip(*found, strict=True) if ours is not None)
    assert found[0][1] is not None


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["lora-decoder", "qlora-decoder"])
def test_weights_in_bf16_are_absorbed_with_and_without_autocast(blip_folder, plugins, monkeypatch, name, autocast):
    asked = []
    monkeypatch.setattr(attention, "pays", lambda *_: asked.append(1) or True)
    options = {"compute_dtype": "bfloat16"} if name.startswith("q") else {}
    strategy = get_strategy(name, options, plugins=plugins)
    backbone = load_base(f"blip:{blip_folder}", strategy, plugins=plugins)
    applied = apply_strategy(backbone.model, backbone.anatomy, strategy)
    prepare_linear(backbone, applied)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (loss, _), (expected, _) = _losses_and_gradients(backbone, "", rel=3e-3)
    assert asked
    assert loss == pytest.approx(expected, rel=3e-3)


def test_words_are_packed_only_where_the_attention_takes_them(blip_folder):
    backbone = BlipBackbone.load(str(blip_folder)).randomly_initialized()  # with transformers' own attention
    text = backbone.text_batch(CAPTIONS, prompt="", max_tokens=64)
    features = backbone.encode(torch.rand(3, 3, 64, 64))
    expected = backbone.loss(features, text)
    assert use_sdpa(backbone.model)
    torch.testing.assert_close(backbone.loss(features, text), expected, rtol=1e-5, atol=1e-5)
    with backbone.eager_attention():
        torch.testing.assert_close(backbone.loss(features, text), expected, rtol=1e-5, atol=1e-5)


def test_a_batch_without_labels_has_no_loss_and_is_no_crash(blip_folder):
    backbone = BlipBackbone.load(str(blip_folder))
    text = backbone.text_batch(CAPTIONS, prompt="", max_tokens=64)
    features = backbone.encode(torch.rand(3, 3, 64, 64))
    assert backbone.loss(features, replace(text, labels=torch.full_like(text.labels, -100))).isnan()
    some = text.labels.clone()
    some[1] = -100
    alone = TextBatch(text.input_ids[[0, 2]], text.attention_mask[[0, 2]], text.labels[[0, 2]])
    loss = backbone.loss(features, replace(text, labels=some))
    torch.testing.assert_close(loss, backbone.loss(features[[0, 2]], alone), rtol=1e-5, atol=1e-5)


def _case(width, heads, lengths, patches, *, lora, through, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape, grad=True):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(grad)

    def projection():
        low = {"a": tensor(2, width), "b": tensor(width, 2), "scaling": 0.5} if lora else {}
        weight = tensor(width, width, grad=not lora)
        return Projection(lambda: weight, (width, width), weight.dtype, weight.requires_grad, tensor(width), **low)

    query = tensor(heads, sum(lengths), width // heads)
    images = tensor(len(lengths), patches, width, grad=through)
    places = torch.cat([row * max(lengths) + torch.arange(length) for row, length in enumerate(lengths)])
    return query, images, projection(), projection(), Packing(lengths, places)


@pytest.mark.parametrize("lora", [False, True])
def test_absorbed_gradients_are_those_of_the_function(lora):
    query, images, key, value, packing = _case(6, 3, (2, 1, 3), 4, lora=lora, through=True, dtype=torch.float64)

    def function(*tensors):
        query, images, key_weight, value_weight, bias = tensors
        keys, values = replace(key, weight=lambda: key_weight), replace(value, weight=lambda: value_weight, bias=bias)
        return absorbed.absorbed_attention(query, images, keys, values, packing, 0.5)

    weights = [p.weight().detach().requires_grad_() for p in (key, value)]
    assert torch.autograd.gradcheck(function, (query, images, *weights, value.bias))


@pytest.mark.parametrize("through", [False, True], ids=["stored", "trained"])
@pytest.mark.parametrize("lora", [False, True], ids=["weights", "lora"])
@pytest.mark.parametrize("longest", [3, 12])
def test_it_is_chosen_where_it_saves_products(lora, through, longest):
    """Products of both ways, gradients included, as torch counts them."""
    width, heads = 64, 8
    query, images, key, value, packing = _case(width, heads, (longest, 2), 50, lora=lora, through=through)

    def by_keys_and_values():
        def heads_of(projection):
            output = images @ projection.weight().t() + projection.bias
            if lora:
                output = output + images @ projection.a.t() @ projection.b.t()
            return output.unflatten(-1, (heads, -1)).transpose(1, 2)

        keys, values = heads_of(key), heads_of(value)
        rows = [
            (query[None, :, where] @ keys[[number]].transpose(-1, -2)).softmax(-1) @ values[[number]]
            for number, where in enumerate(packing.slices())
        ]
        return torch.cat(rows, dim=2)

    counts = []
    for way in (by_keys_and_values, lambda: absorbed.absorbed_attention(query, images, key, value, packing, 1.0)):
        with FlopCounterMode(display=False) as counter:
            way().sum().backward()
        counts.append(counter.get_total_flops())
    assert absorbed.pays(key, value, images, packing.lengths, heads) == (counts[1] < (1.0 if lora else 0.75) * counts[0])


def test_a_layer_is_a_projection_if_that_is_all_it_does():
    torch.manual_seed(0)
    rows = torch.rand(4, 16)

    def layer_of(config, base):
        model = get_peft_model(nn.Sequential(base), config)
        use_one_product(model)
        return model.base_model.model[0].eval()

    def lora(**options):
        return LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, **options)

    def in_4_bits(width=16):
        layer = Linear4bit(width, 2 * width, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
        layer.support_avx512bf16_for_cpu = False  # as in models of ours: bitsandbytes changes the layout of weights there
        return layer

    dropping = layer_of(lora(lora_dropout=0.5), nn.Linear(16, 8))
    layers = [nn.Linear(16, 8), nn.Linear(16, 8, bias=False), in_4_bits(), layer_of(lora(), nn.Linear(16, 8)), dropping]
    for layer in [*layers, layer_of(lora(), in_4_bits())]:
        found = projection_of(layer)
        output = found.of_inputs(rows.expand(2, -1, -1)).transpose(0, 1).flatten(1)
        output = output if found.bias is None else output + found.bias
        torch.testing.assert_close(output, layer(rows), rtol=1e-4, atol=1e-5)
    named = nn.Linear(16, 8)
    named.forward = lambda rows: rows  # as accelerate's hooks replace it
    merged = layer_of(lora(), nn.Linear(16, 8))
    merged.merge()
    hooked = nn.Linear(16, 8)
    hooked.register_forward_hook(lambda *_: None)
    others = [merged, hooked, named, nn.Conv1d(16, 8, 1), layer_of(lora(use_dora=True), nn.Linear(16, 8))]
    repacked = in_4_bits(64)
    _convert_weight_packed_for_cpu(repacked.weight.data, repacked.weight.quant_state)
    others.append(repacked)
    others += [layer_of(IA3Config(target_modules=["0"], feedforward_modules=[]), nn.Linear(16, 8)), dropping.train()]
    assert [projection_of(layer) for layer in others] == [None] * len(others)
