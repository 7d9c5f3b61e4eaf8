"""Weights are loaded in what they are computed in, and no result is another for it."""

import re

import pytest
import torch
from PIL import Image

from medgraft import hardware
from medgraft.acceleration import accelerate
from medgraft.backbones.half_weights import Held
from medgraft.config import RunConfig, run_config
from medgraft.errors import ConfigError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare, prepare_captioner, prepare_model
from medgraft.strategies import Strategy, get_strategy
from medgraft.testing.tiny import write_tiny_model

PLUGINS = PluginManager.from_environment()
CASES = [(name, torch.bfloat16) for name in ("vit-gpt2", "blip2-opt", "instructblip-t5", "git", "qwen2.5-vl")]
CASES += [("blip", torch.float32), ("blip2-t5", torch.float16)]
CAPTIONS = ("a nodule.", "no effusion is seen.")


@pytest.fixture(scope="session")
def stored_folder(tmp_path_factory):
    """Write a tiny model's folder whose weights are stored in `dtype`, and return NAME:FOLDER."""

    def make(name, dtype):
        source = write_tiny_model(name, tmp_path_factory.mktemp("stored") / name, plugins=PLUGINS)
        load_model(source, Strategy(), plugins=PLUGINS).model.to(dtype).save_pretrained(source.partition(":")[2])
        return source

    return make


def _output(backbone, dtype):
    torch.manual_seed(0)
    images = [Image.new("RGB", (64, 64), (40 * i, 90, 200)) for i in range(2)]
    text = backbone.text_batch(CAPTIONS, prompt=backbone.default_prompt, max_tokens=200)
    with torch.no_grad(), hardware.autocast(torch.device("cpu"), dtype):
        features = backbone.encode(backbone.pixel_values(images), prompt=backbone.default_prompt)
        return (features, *backbone.decode(features, text), backbone.generate(features, prompt=backbone.default_prompt))


def _same(one, other):
    return one[3] == other[3] and all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize(("name", "stored"), CASES, ids=[name for name, _ in CASES])
def test_what_is_loaded_in_16_bits_computes_what_fp32_weights_do(name, stored, stored_folder):
    source, dtype = stored_folder(name, stored), torch.bfloat16
    plain = load_model(source, Strategy(), plugins=PLUGINS)
    plain.model.requires_grad_(False)
    accelerate(plain, dtype=dtype)
    held = prepare_captioner(source, Strategy(), plugins=PLUGINS, dtype=dtype)
    assert _same(_output(held, dtype), _output(plain, dtype))
    for module, parameter in ((n, p) for n, m in held.model.named_modules() for p in m.parameters(recurse=False)):
        if "norm" in module.lower() or "query_tokens" in module or "qformer" in module:
            assert parameter.dtype == torch.float32, module
    weights = dict(held.model.named_parameters())
    halves = sum(p.numel() for p in weights.values() if p.dtype == dtype)
    assert halves > sum(p.numel() for n, p in weights.items() if p.ndim == 2 and "qformer" not in n) / 2


@pytest.mark.parametrize(("strategy", "options", "fp32"), [
    ("full", {}, ".*"),
    ("lora", {}, None),
    ("lora", {"use_dora": True}, ".*"),
    ("lora-decoder", {"init_lora_weights": "olora"}, r"text_decoder.*"),
    ("encoder-frozen", {}, r"text_decoder.*"),
    ("bitfit", {}, None),
])  # fmt: skip
def test_weights_that_train_are_in_fp32_and_frozen_ones_are_not(strategy, options, fp32, stored_folder):
    source, plan = stored_folder("blip", torch.float32), get_strategy(strategy, options, plugins=PLUGINS)
    backbone = load_model(source, plan, plugins=PLUGINS, held=Held(torch.bfloat16))
    for name, module in backbone.model.named_modules():
        if type(module) is torch.nn.Linear and "predictions" not in name:  # tied to an embedding that is stored in fp32
            kept = fp32 is not None and re.fullmatch(fp32, name)
            assert module.weight.dtype == (torch.float32 if kept else torch.bfloat16), name
    backbone, applied, _ = prepare_model(source, plan, plugins=PLUGINS, dtype=torch.bfloat16)
    assert {p.dtype for p in applied.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(("former", "dtype"), [("true", "bf16"), ("false", "fp32"), ('"auto"', "auto")])
def test_the_former_setting_bf16_is_read(former, dtype):
    config = run_config(data="phantoms", backbone="blip", strategy="lora", overrides=[f"train.bf16={former}"])
    assert config.train.dtype == dtype
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config and "bf16" not in config.model_dump()["train"]


@pytest.mark.parametrize("override", ["train.bf16=maybe", "train.dtype=half"])
def test_what_is_no_dtype_is_refused(override):
    with pytest.raises(ConfigError, match=r"bf16.*auto|auto.*bf16"):
        run_config(data="phantoms", backbone="blip", strategy="lora", overrides=[override])
    with pytest.raises(ConfigError, match="bf16=true contradicts dtype=fp16"):
        run_config(data="phantoms", backbone="blip", strategy="lora", overrides=["train.bf16=true", "train.dtype=fp16"])
    with pytest.raises(ConfigError, match=r"dtype .half. does not exist\. Known: auto, bf16"):
        hardware.compute_dtype("half")


@pytest.mark.parametrize(("kind", "bf16", "expected"), [
    ("cpu", True, torch.bfloat16), ("cpu", False, torch.float32), ("cuda", True, torch.bfloat16),
    ("cuda", False, torch.float16),
])  # fmt: skip
def test_auto_is_what_the_hardware_has(kind, bf16, expected, monkeypatch):
    monkeypatch.setattr(hardware, "device", lambda: torch.device(kind))
    monkeypatch.setattr(hardware, "bf16_supported", lambda asked: bf16 and asked == kind)
    assert hardware.compute_dtype() == expected
    assert hardware.compute_dtype("fp32") == torch.float32


def test_fp16_computes_on_a_cpu_and_what_overflows_stays_in_fp32(stored_folder):
    source = stored_folder("blip2-t5", torch.float32)
    plain = load_model(source, Strategy(), plugins=PLUGINS)
    for name, parameter in plain.model.named_parameters():
        if name.endswith("DenseReluDense.wo.weight"):
            parameter.data *= 1e7  # beyond 65,504
    plain.model.save_pretrained(source.partition(":")[2])
    held = prepare_captioner(source, Strategy(), plugins=PLUGINS, dtype=torch.float16)
    assert torch.float16 in {p.dtype for p in held.model.parameters()}
    logits, expected = _output(held, torch.float16)[2], _output(plain, torch.float32)[2]
    assert logits.isfinite().all()
    assert torch.nn.functional.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.99


def test_training_in_fp16_without_cuda_is_refused(stored_folder):
    config = run_config(
        data="phantoms", backbone=stored_folder("blip", torch.float32), strategy="lora", overrides=["train.dtype=fp16"]
    )
    with pytest.raises(ConfigError, match=r"fp16 needs loss scaling.*Use bf16, fp32 or auto"):
        prepare(config, plugins=PLUGINS, strategy=get_strategy("lora", plugins=PLUGINS))
