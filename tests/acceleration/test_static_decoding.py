"""Decoding with a static cache against transformers' own greedy `generate`, on a CPU; CUDA graphs are in tests/gpu."""

import copy

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from medgraft.acceleration import static_decoder
from medgraft.acceleration.graphed_decoding import StaticGenerator, generator_for, is_greedy, supports
from medgraft.config import GenerationConfig
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import Strategy, get_strategy

NANO = "blip-nano"
CPU = torch.device("cpu")


def _load(source, strategy="encoder-frozen", bf16=False):
    plugins = PluginManager()
    dtype = torch.bfloat16 if bf16 else torch.float32
    options = {"compute_dtype": str(dtype).removeprefix("torch.")} if strategy == "qlora" else {}
    plan = get_strategy(strategy, options, plugins=plugins)
    backbone, _, _ = prepare_model(source, plan, plugins=plugins, dtype=dtype)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:  # which is zero at first, so that LoRA would add nothing
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return backbone


def _features(backbone, count, bf16, seed=0):
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((160, 160)) for _ in range(count)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return backbone.encode(backbone.pixel_values(images)) * torch.linspace(0.3, 3, count)[:, None, None]


def _both(backbone, generator, features, bf16=False, prompt="", new=20, **changes):
    ids, decoding = backbone.generation_inputs(len(features), CPU, prompt, GenerationConfig(max_new_tokens=new))
    decoding.update(**changes)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return backbone.generate_ids(features, ids, decoding), generator(features, ids, decoding)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("strategy", ["encoder-frozen", "lora", "qlora", "full"])
@pytest.mark.parametrize("size", ["tiny", NANO])
def test_tokens_are_those_of_generate(size, strategy, bf16, blip_folder):
    backbone = _load(NANO if size == NANO else f"blip:{blip_folder}", strategy, bf16)
    generator = StaticGenerator(backbone, graph=False)
    for prompt, count, new in (("", 6, 20), ("a picture of", 6, 20), ("", 2, 20), ("a large red", 3, 7), ("", 7, 33)):
        expected, got = _both(backbone, generator, _features(backbone, count, bf16), bf16, prompt, new)
        assert got.shape == expected.shape
        assert torch.equal(got, expected)


def test_the_static_decoder_is_what_computes(blip_folder, monkeypatch):
    backbone = _load(f"blip:{blip_folder}")
    monkeypatch.setattr(type(backbone), "generate_ids", None)
    ids, decoding = backbone.generation_inputs(3, CPU, "", GenerationConfig(max_new_tokens=5))
    assert StaticGenerator(backbone, graph=False)(_features(backbone, 3, False), ids, decoding).shape == (3, 5)


@pytest.mark.parametrize("every", [1, 3, 8])
def test_rows_end_at_different_places_and_go_on_with_padding(blip_folder, monkeypatch, every):
    monkeypatch.setattr(static_decoder, "_CHECK_EVERY", every)
    backbone = _load(NANO)
    features = _features(backbone, 8, False)
    generator = StaticGenerator(backbone, graph=False)
    free, _ = _both(backbone, generator, features, new=24)
    ends = (free == backbone.end_id).int().argmax(1)
    assert len(set(ends.tolist())) > 1  # of real captions
    for word in free[:, 2].unique().tolist():  # and now with another word as the end
        expected, got = _both(backbone, generator, features, new=24, eos_token_id=word)
        assert torch.equal(got, expected)


def test_all_rows_can_end_at_once(blip_folder):
    backbone = _load(f"blip:{blip_folder}")
    features = _features(backbone, 3, False)
    generator = StaticGenerator(backbone, graph=False)
    first = int(_both(backbone, generator, features[:1], new=1)[0])
    expected, got = _both(backbone, generator, features[:1], eos_token_id=first)
    assert expected.tolist() == got.tolist() == [[first]]
    expected, got = _both(backbone, generator, features[:1], new=30, prompt="an end that is in the prompt", eos_token_id=first)
    assert torch.equal(got, expected)


def test_nothing_is_left_of_the_batch_before(blip_folder):
    backbone = _load(f"blip:{blip_folder}")
    generator = StaticGenerator(backbone, graph=False)
    alone = _both(backbone, StaticGenerator(backbone, graph=False), _features(backbone, 4, False, seed=1))[1]
    _both(backbone, generator, _features(backbone, 6, False, seed=2), prompt="a long prompt of several words", new=40)
    assert torch.equal(_both(backbone, generator, _features(backbone, 4, False, seed=1))[1], alone)


def test_autocast_is_the_callers(blip_folder):
    backbone = _load(NANO)
    generator = StaticGenerator(backbone, graph=False)
    for bf16 in (False, True, False):
        expected, got = _both(backbone, generator, _features(backbone, 5, False), bf16)
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("option", "value"), [("num_beams", 2), ("no_repeat_ngram_size", 2), ("repetition_penalty", 1.5), ("min_new_tokens", 9)]
)
def test_other_decoding_is_left_to_transformers(option, value, blip_folder):
    backbone = _load(f"blip:{blip_folder}")
    features = _features(backbone, 3, False)
    expected, got = _both(backbone, StaticGenerator(backbone, graph=False), features, **{option: value})
    assert torch.equal(got, expected)
    _, decoding = backbone.generation_inputs(3, CPU, "", GenerationConfig())
    defaults = backbone.model.text_decoder.generation_config
    assert is_greedy(decoding, defaults)
    model_defaults = copy.deepcopy(defaults)
    model_defaults.update(suppress_tokens=[5])
    assert not is_greedy(decoding, model_defaults)
    decoding.update(**{option: value})
    assert not is_greedy(decoding, defaults)


def test_published_checkpoints_defaults_are_greedy():
    from medgraft.backbones.blip import BlipBackbone
    from medgraft.backbones.published import published_config

    config = published_config("Salesforce/blip-image-captioning-base")
    decoder = BlipBackbone.meta_model(config).text_decoder
    decoding = transformers.GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=102, pad_token_id=0)
    assert is_greedy(decoding, decoder.generation_config)


def test_models_that_are_not_known_are_not_taken(tiny_folder, blip_folder, monkeypatch):
    kind, folder = tiny_folder("vit-gpt2")
    assert not supports(load_model(f"{kind}:{folder}", Strategy(), plugins=PluginManager()))
    assert not supports(_load(f"blip:{blip_folder}", "lora-int8"))
    assert supports(_load(f"blip:{blip_folder}", "qlora"))
    backbone = _load(NANO)
    assert supports(backbone)
    monkeypatch.setattr(type(backbone), "generate_ids", lambda *_: None)
    assert not supports(backbone)


def test_a_cpu_keeps_to_transformers(blip_folder):
    backbone = _load(f"blip:{blip_folder}")
    with generator_for(backbone, CPU) as generate_ids:
        assert generate_ids == backbone.generate_ids


def test_rounded_parameters_leave_what_is_used_otherwise(blip_folder):
    plain = _load(f"blip:{blip_folder}", "lora")
    names = static_decoder.rounded_parameters(plain.model.text_decoder, torch.bfloat16)
    assert any(name.endswith("lora_A.default.weight") for name in names)
    assert "cls.predictions.decoder.weight" in names
    assert not any("embeddings" in name or "LayerNorm" in name for name in names)
    dora = _load(f"blip:{blip_folder}", "dora")
    adapted = {n for n, m in dora.model.text_decoder.named_modules() if hasattr(m, "lora_A")}
    assert adapted
    names = static_decoder.rounded_parameters(dora.model.text_decoder, torch.bfloat16)
    assert not any(name.startswith(tuple(f"{layer}." for layer in adapted)) for name in names)
    expected, got = _both(dora, StaticGenerator(dora, graph=False), _features(dora, 4, True), True)
    assert torch.equal(got, expected)
