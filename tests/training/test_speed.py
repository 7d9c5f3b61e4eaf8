"""What is left out of a step changes nothing: held weights, the output layer at labels only, batches by length."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from medgraft.adapter import load_base
from medgraft.plugin import PluginManager
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.strategies.bitsandbytes_layers import HELD
from medgraft.testing.backbone_checks import CAPTIONS, images
from medgraft.training import CaptioningModule, prepare_linear
from medgraft.training.precision import HeldConv1D, HeldLinear
from medgraft.training.sampler import LengthSampler

PLUGINS = PluginManager()


def _step(name, tiny_folder, strategy, hold):
    kind, folder = tiny_folder(name)
    plan = get_strategy(strategy, {"compute_dtype": "bfloat16"}, plugins=PLUGINS)  # whatever this machine is good at
    torch.manual_seed(0)
    backbone = load_base(f"{kind}:{folder}", plan, plugins=PLUGINS)
    applied = apply_strategy(backbone.model, backbone.anatomy, plan)
    for parameter_name, parameter in backbone.model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    held = prepare_linear(backbone, applied) if hold else 0
    for layer in backbone.model.modules():
        if type(layer) in HELD.values() and not hold:
            layer.__class__ = type(layer).__base__
    module = CaptioningModule(backbone, applied, backbone.default_prompt).eval()  # without dropout
    text = backbone.text_batch(CAPTIONS, prompt=backbone.default_prompt, max_tokens=160)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(text.input_ids, text.attention_mask, text.labels, backbone.pixel_values(images(2)))["loss"]
    loss.backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, held, backbone


@pytest.mark.parametrize("strategy", ["lora", "lora-decoder", "encoder-frozen", "decoder-frozen", "ia3", "bitfit"])
@pytest.mark.parametrize("name", ["blip", "blip2-opt", "vit-gpt2", "git"])
def test_held_weights_give_the_same_loss_and_gradients(name, strategy, tiny_folder):
    loss, gradients, _, _ = _step(name, tiny_folder, strategy, hold=False)
    again, others, held, backbone = _step(name, tiny_folder, strategy, hold=True)
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys()
    if "lora" in strategy:  # on held weights, LoRA's part of an input's gradient is added before it is rounded
        for key, gradient in gradients.items():
            assert (gradient - others[key]).norm() <= 0.03 * gradient.norm(), key
    else:
        for key, gradient in gradients.items():
            # the patch embedding is a product instead of a convolution: values are rounded the other way, few with oneDNN's
            bound = 2**-9 * gradient.norm() if "patch_embedding" in key else 0
            assert (gradient - others[key]).norm() <= bound, key
    kinds = [type(module) for module in backbone.model.modules()]
    assert held == kinds.count(HeldLinear) + kinds.count(HeldConv1D) > 0
    if name == "blip2-opt":
        assert all(p.dtype == torch.float32 for n, p in backbone.model.named_parameters() if n.startswith("qformer"))


@pytest.mark.parametrize(("strategy", "kind"), [("qlora", Linear4bit), ("lora-int8", Linear8bitLt)])
@pytest.mark.parametrize("name", ["blip", "blip2-opt", "vit-gpt2", "git"])
def test_quantised_layers_give_bf16_to_what_follows(name, strategy, kind, tiny_folder):
    loss, gradients, _, _ = _step(name, tiny_folder, strategy, hold=False)
    again, others, _, backbone = _step(name, tiny_folder, strategy, hold=True)
    torch.testing.assert_close(again, loss, rtol=2e-3, atol=0)
    assert gradients.keys() == others.keys()
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()])
    apart = torch.cat([(gradient - others[key]).flatten() for key, gradient in gradients.items()])
    assert apart.norm() < 0.03 * whole.norm()  # bf16 keeps eight binary digits
    layers = [module for module in backbone.model.modules() if isinstance(module, kind)]
    held = [module for module in layers if type(module) in HELD.values()]
    assert held
    seen = {}
    for module in layers:
        module.register_forward_hook(lambda m, _, output: seen.update({m: output.dtype}))
    text = backbone.text_batch(CAPTIONS, prompt=backbone.default_prompt, max_tokens=160)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = backbone.encode(backbone.pixel_values(images(2)), prompt=backbone.default_prompt)
        backbone.loss(features, text)
    assert {seen[module] for module in held if module in seen} == {torch.bfloat16}
    if name == "blip2-opt":
        assert not any("qformer" in n for n, m in backbone.model.named_modules() if m in held)


@pytest.mark.parametrize("strategy", ["qlora", "lora-int8"])
def test_a_quantised_model_lets_go_of_its_file(strategy, tiny_folder):
    kind, folder = tiny_folder("blip")
    backbone = load_base(f"{kind}:{folder}", get_strategy(strategy, plugins=PLUGINS), plugins=PLUGINS)
    assert all(p.untyped_storage().resizable() for p in (*backbone.model.parameters(), *backbone.model.buffers()))
    plain = load_base(f"{kind}:{folder}", get_strategy("lora", plugins=PLUGINS), plugins=PLUGINS)
    assert not all(p.untyped_storage().resizable() for p in plain.model.parameters())  # what the first line would miss


def test_what_reads_weights_otherwise_is_left_alone(tiny_folder):
    _, _, held, backbone = _step("blip", tiny_folder, "dora", hold=True)
    wrapped = [m for n, m in backbone.model.named_modules() if n.endswith("base_layer")]
    assert wrapped and not any(isinstance(module, HeldLinear) for module in wrapped)
    assert held > 0  # the head


def test_held_layers_work_without_autocast(tiny_folder):
    *_, backbone = _step("vit-gpt2", tiny_folder, "lora", hold=True)
    with torch.no_grad():
        features = backbone.encode(backbone.pixel_values(images(2)))
    assert features.dtype == torch.float32


@pytest.mark.parametrize("bf16", [False, True])
def test_blips_loss_needs_the_output_layer_at_labels_only(bf16, tiny_folder):
    _, folder = tiny_folder("blip")
    backbone = PLUGINS.get("backbone", "blip").load(str(folder))
    text = backbone.text_batch(CAPTIONS, prompt="a picture of", max_tokens=64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features = backbone.encode(backbone.pixel_values(images(2)))
        torch.testing.assert_close(backbone.loss(features, text), backbone.decode(features, text)[0], rtol=1e-6, atol=1e-6)


def test_label_smoothing_is_kept(tiny_folder):
    _, folder = tiny_folder("blip")
    backbone = PLUGINS.get("backbone", "blip").load(str(folder))
    backbone.config.text_config.label_smoothing = backbone.model.text_decoder.label_smoothing = 0.1
    text = backbone.text_batch(CAPTIONS)
    with torch.no_grad():
        features = backbone.encode(backbone.pixel_values(images(2)))
        torch.testing.assert_close(backbone.loss(features, text), backbone.decode(features, text)[0])


def test_batches_have_captions_of_like_length():
    lengths = torch.randint(1, 60, (403,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthSampler(lengths, batch_size=8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(403))
    assert order == list(LengthSampler(lengths, batch_size=8, seed=3))
    batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 403, 8)]
    assert len(batches[-1]) == 3
    spread = sum(max(batch) - min(batch) for batch in batches) / len(batches)
    assert spread < 8  # of 59 that random batches nearly reach
    tops = [max(batch) for batch in batches[:-1]]
    assert tops != sorted(tops, reverse=True)
    sampler.set_epoch(1)
    assert list(sampler) != order
