"""vLLM's rules for LoRA, against the names of the tensors that our adapters really have."""

import json

import pytest
from peft import LoraConfig
from safetensors import safe_open

from medgraft.adapter.serving import serving
from medgraft.models import load_model
from medgraft.strategies import apply_strategy, get_strategy

TOWERS = "--enable-tower-connector-lora"


def _package(tiny_folder, plugins, tmp_path, tiny, strategy, options=None):
    """(backbone, adapter_config.json, names of tensors) of an adapter as it is saved."""
    name, folder = tiny_folder(tiny)
    chosen = get_strategy(strategy, options or {}, plugins=plugins)
    backbone = load_model(f"{name}:{folder}", chosen, plugins=plugins)
    apply_strategy(backbone.model, backbone.anatomy, chosen).model.save_pretrained(tmp_path, save_embedding_layers=False)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        return name, json.loads((tmp_path / "adapter_config.json").read_text()), list(file.keys())


@pytest.mark.parametrize(
    ("tiny", "strategy", "options"),
    [
        ("qwen2-vl", "lora-decoder", ("--enable-lora", "--max-lora-rank 16")),
        ("qwen2.5-vl", "lora", ("--enable-lora", "--max-lora-rank 16", TOWERS)),
        ("blip2-opt", "lora-decoder", ("--enable-lora", "--max-lora-rank 16")),
        ("blip2-opt", "qlora", ("--enable-lora", "--max-lora-rank 16", TOWERS)),
    ],
)
def test_language_models_that_it_serves(tiny, strategy, options, tiny_folder, plugins, tmp_path):
    found = serving(*_package(tiny_folder, plugins, tmp_path, tiny, strategy))
    assert (found.obstacles, found.options) == ((), options)


@pytest.mark.parametrize(
    ("tiny", "strategy", "obstacle"),
    [
        ("blip", "lora", "blip is no model that it serves with adapters"),
        ("vit-gpt2", "lora", "vit-gpt2 is no model"),
        ("git", "lora", "git is no model"),
        ("instructblip-vicuna", "lora-decoder", "instructblip is no model"),
        ("blip2-t5", "lora-decoder", "no language model with layers named as language_model.decoder.block.0"),
        ("qwen2-vl", "dora", "use_dora is set"),
        ("qwen2-vl", "ia3", "the method is IA3, not LoRA"),
    ],
)
def test_others(tiny, strategy, obstacle, tiny_folder, plugins, tmp_path):
    found = serving(*_package(tiny_folder, plugins, tmp_path, tiny, strategy))
    assert obstacle in "; ".join(found.obstacles) and not found.options


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        ({"r": 600}, "rank 600 is above 512"),
        ({"bias": "lora_only"}, "biases were trained"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern is set"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is set"),
    ],
)
def test_settings(change, obstacle):
    config = LoraConfig(r=9, target_modules=["q_proj"], **{k: v for k, v in change.items() if k != "r"}).to_dict()
    key = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
    keys = [key.format("A"), key.format("B")]
    assert serving("qwen-vl", config | {"peft_type": "LORA"} | change, keys).obstacles == (obstacle,)
    plain = LoraConfig(r=9, target_modules=["q_proj"]).to_dict() | {"peft_type": "LORA"}
    assert serving("qwen-vl", plain, keys).options == ("--enable-lora", "--max-lora-rank 16")
    strange = keys[0].replace("lora_A.weight", "lora_magnitude_vector")
    assert serving("qwen-vl", plain, [*keys, strange]).obstacles == (f"it does not read tensors named as {strange}",)
    assert serving("qwen-vl", None, ()).obstacles == ("weights of the base were trained in place",)
