"""Captions by CUDA graphs against transformers' own, on a GPU.

python -m pytest tests/gpu/test_graphed_decoding.py -s
"""

import gc
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from medgraft import captioning, hardware
from medgraft.acceleration import KERNELS, accelerate, capture, graphed_decoding
from medgraft.acceleration.graphed_decoding import StaticGenerator, generator_for
from medgraft.backbones.blip import BlipBackbone
from medgraft.captioning import caption_images
from medgraft.config import GenerationConfig
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import Strategy, get_strategy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

WEIGHTS = Path(__file__).parents[2] / "plugins" / "medgraft-blip-nano" / "src" / "medgraft_blip_nano" / "weights"
NANO = f"blip:{WEIGHTS}"  # which needs no plugin to be installed
_CUT_OFF = []  # graphs that failed on purpose; see capture.failed_graphs
FAMILIES = [
    "blip",
    "blip2-opt",
    "blip2-t5",
    "instructblip-t5",
    "instructblip-vicuna",
    "vit-gpt2",
    "deit-bert",
    "git",
    "qwen2-vl",
]


@pytest.fixture
def gpu(monkeypatch):
    """The first GPU, for captioning too; no graph may have failed before or after."""
    device = torch.device("cuda", 0)
    monkeypatch.setattr(hardware, "device", lambda: device)
    failed = capture.failed_graphs  # a test that spoils a capture puts another list in its place
    assert not failed
    yield device
    assert not failed
    assert not torch.cuda.is_current_stream_capturing()


def _load(source, device, strategy="encoder-frozen", bf16=False):
    plugins = PluginManager()
    dtype = torch.bfloat16 if bf16 else torch.float32
    backbone, _, _ = prepare_model(source, get_strategy(strategy, plugins=plugins), plugins=plugins, dtype=dtype)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.data.copy_(0.2 * values)
    assert next(backbone.model.parameters()).device == device
    return backbone


def _features(backbone, device, count, bf16=False, seed=0):
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((160, 160)) for _ in range(count)]
    with torch.no_grad(), hardware.autocast(device, torch.bfloat16 if bf16 else torch.float32):
        features = backbone.encode(backbone.pixel_values(images).to(device))
    return features * torch.linspace(0.3, 3, count, device=device)[:, None, None]


def _both(backbone, generate_ids, features, bf16=False, prompt="", new=20, **changes):
    inputs = backbone.generation_inputs(len(features), features.device, prompt, GenerationConfig(max_new_tokens=new))
    inputs[1].update(**changes)
    with torch.no_grad(), hardware.autocast(features.device, torch.bfloat16 if bf16 else torch.float32):
        return backbone.generate_ids(features, *inputs).cpu(), generate_ids(features, *inputs).cpu()


def _equal_rows(expected, got):
    width = min(expected.shape[1], got.shape[1])
    return float((expected[:, :width] == got[:, :width]).all(1).float().mean())


@pytest.mark.parametrize("source", ["tiny", NANO])
@pytest.mark.parametrize("strategy", ["encoder-frozen", "lora"])
def test_tokens_are_those_of_generate_in_fp32(source, strategy, gpu, tiny_folder):
    backbone = _load(NANO if source == NANO else f"blip:{tiny_folder('blip')[1]}", gpu, strategy)
    with generator_for(backbone, gpu) as generate_ids:
        assert isinstance(generate_ids, StaticGenerator)
        for prompt, count, new in (("", 32, 20), ("a picture of", 32, 20), ("", 5, 12), ("a large red", 40, 30)):
            expected, got = _both(backbone, generate_ids, _features(backbone, gpu, count), prompt=prompt, new=new)
            assert torch.equal(got, expected)


@pytest.mark.parametrize("strategy", ["encoder-frozen", "lora", "qlora", "full", "dora"])
def test_captions_are_nearly_all_those_of_generate_in_bf16(strategy, gpu):
    backbone = _load(NANO, gpu, strategy, bf16=True)
    with generator_for(backbone, gpu) as generate_ids:
        for prompt in ("", "a picture of"):
            features = _features(backbone, gpu, 40, True)
            share = _equal_rows(*_both(backbone, generate_ids, features, True, prompt, 24))
            print(f"\n{strategy} {prompt!r}: {share:.0%} of captions equal")
            assert share >= (0.8 if strategy == "qlora" else 0.9)  # 4-bit products of few rows are another kernel


def test_eight_bit_layers_are_left_to_transformers(gpu):
    backbone = _load(NANO, gpu, "lora-int8", bf16=True)
    with generator_for(backbone, gpu) as generate_ids:
        assert generate_ids == backbone.generate_ids
        assert _equal_rows(*_both(backbone, generate_ids, _features(backbone, gpu, 4, True), True)) == 1


def test_rows_end_where_they_do_by_generate(gpu):
    backbone = _load(NANO, gpu)
    features = _features(backbone, gpu, 8)
    with generator_for(backbone, gpu) as generate_ids:
        free, _ = _both(backbone, generate_ids, features, new=60)
        for word in free[:, 2].unique().tolist():
            expected, got = _both(backbone, generate_ids, features, new=60, eos_token_id=word)
            assert torch.equal(got, expected)


def test_smaller_batches_use_the_graph_and_larger_ones_get_their_own(gpu):
    backbone = _load(NANO, gpu)
    with generator_for(backbone, gpu) as generate_ids:
        sizes = (6, 2, 6, 9, 1)
        made = []
        for seed, count in enumerate(sizes):
            expected, got = _both(backbone, generate_ids, _features(backbone, gpu, count, seed=seed))
            assert torch.equal(got, expected)
            made.append(generate_ids._decoder)
        assert made[0] is made[1] is made[2] is not made[3] is made[4]


def test_another_model_and_changed_weights_have_other_captions(gpu):
    backbone = _load(NANO, gpu)
    features = _features(backbone, gpu, 6)
    for change in (lambda: None, lambda: _scramble(backbone)):
        change()
        for bf16 in (False, True):
            with generator_for(backbone, gpu) as generate_ids:
                assert _equal_rows(*_both(backbone, generate_ids, features, bf16)) >= (0.8 if bf16 else 1)
    other = _load(NANO, gpu, "lora")
    with generator_for(other, gpu) as generate_ids:
        expected, got = _both(other, generate_ids, _features(other, gpu, 6))
        assert torch.equal(got, expected)


def _scramble(backbone):
    with torch.no_grad():
        for name, parameter in backbone.model.text_decoder.named_parameters():
            if name.endswith("output.dense.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.02)


def test_memory_is_given_back(gpu):
    backbone = _load(NANO, gpu)
    features = _features(backbone, gpu, 32)
    with generator_for(backbone, gpu) as generate_ids:  # cuBLAS keeps some for each stream from its first use on
        _both(backbone, generate_ids, features)
    del generate_ids
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        with generator_for(backbone, gpu) as generate_ids:
            _both(backbone, generate_ids, features)
            assert torch.cuda.memory_allocated() > before
        del generate_ids
        gc.collect()
        assert torch.cuda.memory_allocated() <= before + (1 << 20)


def test_what_cannot_be_captured_is_left_to_transformers(gpu, monkeypatch, caplog):
    backbone = _load(NANO, gpu)
    features = _features(backbone, gpu, 4)
    original = backbone.model.text_decoder.cls.forward

    def waits(hidden_states):
        scores = original(hidden_states)
        scores.sum().item()
        return scores

    failed = []
    _CUT_OFF.append(failed)
    monkeypatch.setattr(capture, "failed_graphs", failed)
    monkeypatch.setattr(graphed_decoding, "failed_graphs", failed)
    monkeypatch.setattr(backbone.model.text_decoder.cls, "forward", waits)
    with generator_for(backbone, gpu) as generate_ids:
        for _ in range(2):
            expected, got = _both(backbone, generate_ids, features)
            assert torch.equal(got, expected)
    assert len(failed) == 1
    assert sum("without a CUDA graph" in record.message for record in caplog.records) == 1
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.cuda.get_sync_debug_mode() == 0
    with generator_for(backbone, gpu) as generate_ids:  # for the rest of the process
        assert generate_ids == backbone.generate_ids
    torch.rand(3, device=gpu)


def test_a_capture_that_is_cut_off_leaves_the_gpu_usable(gpu, monkeypatch):
    failed = []
    _CUT_OFF.append(failed)
    monkeypatch.setattr(capture, "failed_graphs", failed)
    monkeypatch.setattr(capture, "waiting_is_an_error", torch.no_grad)  # so that it comes to a capture
    total = torch.ones(4, device=gpu)
    with pytest.raises(RuntimeError):
        capture.captured(lambda: total.sum().item(), gpu)
    assert len(failed) == 1
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert float(torch.rand(8, device=gpu).sum()) > 0
    graph = capture.captured(lambda: total.add_(1), gpu)
    before = total.clone()
    graph.replay()
    assert torch.equal(total, before + 1)


@pytest.fixture
def image_files(tmp_path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.jpg" for number in range(75)]
    for path in paths:
        small = rng.integers(0, 255, (rng.integers(4, 9), 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((150, 170)).save(path)
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_captions_of_files_are_those_without_graphs(dtype, gpu, image_files):
    plugins = PluginManager()
    plan, others = get_strategy("encoder-frozen", plugins=plugins), [k.name for k in KERNELS if k.name != "graphed_decoding"]
    captions = []
    for kernels in ("auto", tuple(others)):
        backbone, _, acceleration = prepare_model(NANO, plan, plugins=plugins, dtype=dtype, kernels=kernels)
        assert ("graphed_decoding" in acceleration.installed) == (kernels == "auto")
        captions.append(caption_images(backbone, image_files, dtype=dtype, batch_size=32).captions)
    equal = sum(a == b for a, b in zip(*captions, strict=True))
    assert equal >= (0.9 if dtype == torch.bfloat16 else 1) * len(image_files)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_captions_on_a_gpu(name, dtype, gpu, tiny_folder, image_files):
    if not any(name in spec.tiny for spec, _ in PluginManager().specs("backbone")):
        pytest.skip(f"the plugin with {name} is not installed")
    kind, folder = tiny_folder(name)
    backbone, _, _ = prepare_model(f"{kind}:{folder}", Strategy(), plugins=PluginManager(), dtype=dtype)
    options = GenerationConfig(max_new_tokens=6)
    captions = caption_images(backbone, image_files[:9], dtype=dtype, batch_size=4, options=options).captions
    assert len(captions) == 9
    backbone.model.to("cpu")
    hardware.device = lambda: torch.device("cpu")  # the fixture puts it back
    if dtype == torch.float32:
        on_cpu = caption_images(backbone, image_files[:9], batch_size=4, options=options).captions
        assert sum(a == b for a, b in zip(captions, on_cpu, strict=True)) >= 7


def test_how_long_blip_base_takes(gpu, tmp_path, tiny_folder, capsys):
    """Random weights, 384 px, batch 32, bf16: seconds for 512 images, and tokens a second."""
    small = BlipBackbone.load(str(tiny_folder("blip")[1]))
    torch.manual_seed(0)
    text = {"encoder_hidden_size": 768, "num_attention_heads": 12, "vocab_size": 30524, "pad_token_id": 0}
    vision = {"image_size": 384, "initializer_range": 0.02}
    model = transformers.BlipForConditionalGeneration(transformers.BlipConfig(text_config=text, vision_config=vision)).eval()
    model.to(gpu)
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.jpg" for number in range(32)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (80, 100, 3), dtype=np.uint8)).resize((800, 640)).save(path, quality=90)
    paths = paths * 16
    processor = transformers.BlipImageProcessorPil(size={"height": 384, "width": 384})

    def reference():
        for start in range(0, len(paths), 32):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + 32]]
            pixels = processor(images, return_tensors="pt")["pixel_values"].to(gpu)
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                model.generate(pixels, max_new_tokens=20)

    backbone = BlipBackbone("blip-base", model, small.tokenizer, processor)
    options = GenerationConfig(max_new_tokens=20)

    def ours():
        caption_images(backbone, paths, options=options, dtype=torch.bfloat16, batch_size=32)

    def seconds(function):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    before = seconds(reference)
    accelerate(backbone, dtype=torch.bfloat16)
    warm, after = seconds(ours), seconds(ours)
    parts = _parts(backbone, gpu, processor, paths, options, seconds)
    with capsys.disabled():
        print(f"\n512 images: generate {before:.2f} s, medgraft {after:.2f} s ({warm:.2f} at first): {before / after:.1f}x")
        print("; ".join(f"{name} {value:.2f}" for name, value in parts.items()))
    assert after < before


def _parts(backbone, gpu, processor, paths, options, seconds):
    """Milliseconds of a batch of 32, part by part, the reading of all images included."""
    reader = captioning.ImageReader(backbone, gpu)
    read = seconds(
        lambda: [reader.pixel_values(read) for _, read in reader.ahead([paths[i : i + 32] for i in range(0, 512, 32)])]
    )
    pixels = processor([Image.open(path) for path in paths[:32]], return_tensors="pt")["pixel_values"].to(gpu)
    found = {"read ms/batch": read / 16e-3}
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        features = backbone.encode(pixels)
        found["encode ms"] = seconds(lambda: [backbone.encode(pixels) for _ in range(5)]) / 5e-3
        inputs = backbone.generation_inputs(32, gpu, "", options)
        found["generate ms"] = seconds(lambda: backbone.generate_ids(features, *inputs)) / 1e-3
        with generator_for(backbone, gpu) as generate_ids:
            found["capture and first ms"] = seconds(lambda: generate_ids(features, *inputs)) / 1e-3
            found["graphed ms"] = seconds(lambda: [generate_ids(features, *inputs) for _ in range(5)]) / 5e-3
            decoder = generate_ids._decoder
            found["keys and values ms"] = seconds(lambda: [decoder._set_images(features) for _ in range(5)]) / 5e-3
            decoder._position.zero_()
            found["token ms"] = seconds(lambda: [decoder._graph.replay() for _ in range(10)]) / 10e-3
    found["tokens/s generate"] = 640e3 / found["generate ms"]
    found["tokens/s graphed"] = 640e3 / found["graphed ms"]
    return found
