"""Every preset and every PEFT method on a real BLIP: what is trained, what stays, what is refused."""

import pytest
import torch

from medgraft import hardware
from medgraft.backbones.blip import BlipBackbone
from medgraft.errors import ConfigError, StrategyError, UnknownNameError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import PartPlan, Strategy, apply_strategy, get_strategy, methods, quantization_config
from medgraft.training import CaptioningModule

PRESETS = [name for name in PluginManager(disabled=frozenset({"blip-nano"})).names("strategy") if name != "zero-shot"]
# PEFT methods and the options that a BLIP of width 64 needs for them
OPTIONS = {
    "BOFT": {"boft_block_size": 4}, "OFT": {"oft_block_size": 16, "r": 0}, "VBLORA": {"num_vectors": 8, "vector_length": 64},
    "C3A": {"block_size": 64}, "RANDLORA": {"r": 4}, "FOURIERFT": {"n_frequency": 50}, "WAVEFT": {"n_frequency": 50},
}  # fmt: skip


def _batch(backbone):
    text = backbone.text_batch(["a nodule in the left lung.", "normal chest."], prompt="", max_tokens=32)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels, "input_ids": text.input_ids, "attention_mask": text.attention_mask, "labels": text.labels}


def _apply(blip_folder, strategy, plugins):
    backbone = load_model(f"blip:{blip_folder}", strategy, plugins=plugins)
    return backbone, apply_strategy(backbone.model, backbone.anatomy, strategy)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train_their_scope_and_nothing_else(name, blip_folder, plugins):
    torch.manual_seed(0)
    strategy = get_strategy(name, plugins=plugins)
    backbone, applied = _apply(blip_folder, strategy, plugins)
    module = CaptioningModule(backbone, applied).train()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([p for _, p in trainable], lr=1e-2)
    batch = _batch(backbone)
    losses = []
    for _ in range(3):
        loss = module(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {n for n, p in module.named_parameters() if not torch.equal(p.detach(), before[n])}
    unused = {n for n, _ in trainable} - moved
    assert moved <= {n for n, _ in trainable}
    # the head's own bias is tied, and softmax does not see what all patches' keys share; all else must move
    assert len({name for name in unused if not name.endswith("crossattention.self.key.bias")}) <= 1, unused
    for part in applied.frozen_parts:
        for prefix in backbone.anatomy.parts[part].prefixes:
            assert not any(f".{prefix}." in f".{name}" for name in moved)
            assert not backbone.model.get_submodule(prefix).training
    assert applied.trainable_parameters == sum(p.numel() for _, p in trainable)


def test_counts_are_those_of_the_anatomy(blip_folder, plugins):
    _, applied = _apply(blip_folder, get_strategy("lora", plugins=plugins), plugins)
    assert len(applied.matched_modules) == 2 * 4 + 2 * 10  # layers x (qkv, projection, fc1, fc2) and x (4 + 4 + 2)
    _, applied = _apply(blip_folder, get_strategy("qlora-decoder", plugins=plugins), plugins)
    assert len(applied.matched_modules) == 20
    assert len(applied.quantized) == 28
    total = _apply(blip_folder, get_strategy("full", plugins=plugins), plugins)[1].total_parameters
    assert applied.total_parameters == total + applied.trainable_parameters  # packed 4-bit values are counted as what they are


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # SHiRA's, of torch
@pytest.mark.parametrize("method", methods())
def test_every_peft_method_that_takes_linear_layers(method, blip_folder, plugins):
    backbone, applied = _apply(blip_folder, get_strategy(f"peft:{method}", OPTIONS.get(method, {}), plugins=plugins), plugins)
    module = CaptioningModule(backbone, applied).train()
    assert applied.adapter_parameters
    assert not applied.direct
    loss = module(**_batch(backbone))["loss"]
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters() if p.requires_grad)


def test_options_reach_peft(blip_folder, plugins):
    strategy = get_strategy("lora", {"r": 3, "lora_alpha": 5, "text.roles": "cross"}, plugins=plugins)
    _, applied = _apply(blip_folder, strategy, plugins)
    config = applied.model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (3, 5)
    text = [name for name in applied.matched_modules if name.startswith("text")]
    assert text and all("crossattention" in name for name in text)
    strategy = get_strategy("lora", {"vision": "frozen", "quantization": "fp4"}, plugins=plugins)
    assert (strategy.vision.mode, strategy.quantization) == ("frozen", "fp4")


def test_parts_may_mix_full_and_adapter(blip_folder, plugins):
    strategy = Strategy(vision=PartPlan(mode="full", roles=("norm",)), text=PartPlan(mode="adapter", roles=("cross",)))
    _, applied = _apply(blip_folder, strategy, plugins)
    assert applied.direct and all("layer" in name and "norm" in name for name in applied.direct)
    assert applied.adapter_parameters and all("crossattention" in name for name in applied.adapter_parameters)


def test_a_part_trained_in_full_is_not_quantised(blip_folder, plugins):
    strategy = Strategy(vision=PartPlan(mode="full"), text=PartPlan(mode="adapter"), quantization="nf4")
    _, applied = _apply(blip_folder, strategy, plugins)
    assert all(name.startswith("text_decoder") for name in applied.quantized)
    assert len(applied.quantized) == 20


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("lora", {"lora_alhpa": 3}, ConfigError, "'lora_alhpa' is not one of its options. Did you mean 'lora_alpha'"),
        ("lora", {"quantisation": "nf4"}, ConfigError, "'quantisation' is not one of its options. Did you mean 'quantization'"),
        ("full", {"quantisation": "nf4"}, ConfigError, "this strategy has no adapter. Did you mean 'quantization'"),
        ("lora", {"target_modules": "x"}, ConfigError, "'target_modules' is set by medgraft from the anatomy"),
        ("lora", {"r": 0}, ConfigError, "cannot be applied: `r` should be a positive integer"),
        ("full", {"r": 8}, ConfigError, "'r' belongs to a PEFT method, but this strategy has no adapter"),
        ("lora", {"vision": "thawed"}, ConfigError, "vision.mode: Input should be 'frozen', 'full' or 'adapter'"),
        ("lora", {"leg.roles": "attn"}, ConfigError, "'leg' is not a part"),
        ("lora", {"quantization": "nf3"}, ConfigError, "quantization: Input should be 'none', 'int8', 'nf4' or 'fp4'"),
        ("full", {"quantization": "nf4"}, StrategyError, "every part is trained in full"),
        ("peft:LORAX", {}, UnknownNameError, "Unknown PEFT method 'LORAX'"),
        ("peft:poly", {}, StrategyError, "PEFT method POLY needs a task id"),
        ("peft:VBLORA", {"vector_length": 7}, ConfigError, "cannot be applied"),
        ("norm-tuning", {"text.roles": "bones"}, ConfigError, "text.roles"),
    ],
)
def test_what_cannot_be_is_said(name, options, error, message, blip_folder, plugins):
    with pytest.raises(error, match=message.replace("(", r"\(").replace("`", ".")):
        _apply(blip_folder, get_strategy(name, options, plugins=plugins), plugins)


def test_a_strategy_for_a_part_that_is_not_there(blip_folder, plugins):
    with pytest.raises(StrategyError, match="trains only bridge, but this backbone has vision, text"):
        _apply(blip_folder, Strategy(bridge=PartPlan(mode="full")), plugins)


@pytest.mark.parametrize(
    ("kind", "has_bf16", "options", "dtype"),
    [
        ("cpu", True, {}, torch.bfloat16),
        ("cpu", False, {}, torch.float32),
        ("cuda", True, {}, torch.bfloat16),
        ("cuda", False, {}, torch.float16),
        ("cpu", True, {"compute_dtype": "float16"}, torch.float16),
    ],
)
def test_4_bit_layers_compute_in_what_the_machine_has_or_the_user_says(kind, has_bf16, options, dtype, plugins, monkeypatch):
    monkeypatch.setattr(hardware, "device", lambda: torch.device(kind))
    monkeypatch.setattr(hardware, "bf16_supported", lambda where: has_bf16)
    strategy = get_strategy("qlora", options, plugins=plugins)
    config = quantization_config(strategy, BlipBackbone.anatomy, BlipBackbone.never_quantized)
    assert config.bnb_4bit_compute_dtype == dtype
