"""Every kernel against the plain path: kernel x backbone x strategy x dtype, on small models with weights that matter."""

import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from safetensors.torch import load_file, save_file
from torch import nn

from medgraft.acceleration import KERNELS, accelerate, apply, graphed_decoding, packed_decoder
from medgraft.acceleration.graphed_decoding import StaticGenerator
from medgraft.adapter import in_place_digests, load_adapter, save_weights, write_package
from medgraft.benchmark import why_unsupported
from medgraft.config import GenerationConfig
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.saliency import MapOptions, caption_maps
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.testing.samples import images
from medgraft.testing.strategy_checks import _manifest
from medgraft.testing.tiny import tiny_models
from medgraft.training import CaptioningModule

PLUGINS = PluginManager()
CAPTIONS = ("a nodule.", "no acute findings.", "axial ct of the chest (arrow).")
FP32, BF16 = torch.float32, torch.bfloat16
# relative noise that a kernel may add in bf16: of the loss, and of all gradients as one vector
NOISE = {
    "sdpa": (1e-3, 0.05),
    "self_attention": (1e-3, 0.05),
    "linear": (1e-6, 1e-6),  # the same roundings
    "quantized": (2e-3, 0.08),  # what follows a layer is computed in bf16 instead of fp32
    "lora": (1e-3, 0.08),
    "packed_decoder": (2e-3, 0.08),
    "causal_loss": (1e-3, 0.05),
    "auto": (8e-3, 0.1),  # rsLoRA's larger factor enlarges the noise of "lora"
}
OTHERS = ("blip2-opt", "vit-gpt2", "git")
ROWS = [
    *(("sdpa", "blip", strategy, dtype) for strategy in ("full", "qlora") for dtype in (FP32, BF16)),
    *(("self_attention", "blip", strategy, dtype) for strategy in ("full", "encoder-frozen") for dtype in (FP32, BF16)),
    *(("linear", name, s, BF16) for name in ("blip", *OTHERS) for s in ("lora", "encoder-frozen", "ia3", "bitfit")),
    ("linear", "blip", "pissa", BF16),
    *(("quantized", name, strategy, BF16) for name in ("blip", *OTHERS) for strategy in ("qlora", "lora-int8")),
    *(("lora", name, "lora", dtype) for name in ("blip", *OTHERS) for dtype in (FP32, BF16)),
    *(("lora", "blip", strategy, dtype) for strategy in ("qlora", "lora-int8", "rslora", "pissa") for dtype in (FP32, BF16)),
    *(
        ("packed_decoder", "blip", strategy, dtype)
        for strategy in ("full", "encoder-frozen", "lora", "qlora-decoder", "lora-int8", "dora")
        for dtype in (FP32, BF16)
    ),
    *(
        ("causal_loss", "blip", strategy, dtype)
        for strategy in ("full", "encoder-frozen", "lora", "qlora-decoder", "dora")
        for dtype in (FP32, BF16)
    ),
    *(("cuda_graphs", name, "lora", FP32) for name in ("blip", *OTHERS)),
    *(("graphed_decoding", "blip", strategy, FP32) for strategy in ("full", "encoder-frozen", "lora", "qlora")),
    *(
        ("auto", name, strategy, dtype)
        for name in ("blip", "vit-gpt2")
        for strategy in ("full", "encoder-frozen", "lora", "qlora", "lora-int8")
        for dtype in (FP32, BF16)
    ),
    *(("auto", "blip", strategy, dtype) for strategy in ("vera", "oft", "pissa", "lora-upper") for dtype in (FP32, BF16)),
]
LAYERS = {"lora-upper": ("lora", {"text.layers": "1-", "vision.layers": 0})}


@pytest.fixture(scope="module")
def sharp_folder(tiny_folder, tmp_path_factory):
    """`tiny_folder` with larger matrices: as they are written, a model hardly looks at its image."""
    made = {}

    def get(name):
        if name not in made:
            kind, folder = tiny_folder(name)
            copy = tmp_path_factory.mktemp(name) / "sharp"
            shutil.copytree(folder, copy)
            factor = 1 if "t5" in name else 5  # T5 does not scale its attention, which larger weights saturate
            weights = {n: t * factor if t.ndim == 2 else t for n, t in load_file(copy / "model.safetensors").items()}
            save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
            made[name] = f"{kind}:{copy}"
        return made[name]

    return get


def _plain(name, strategy, dtype):
    options = {"lora_dropout": 0.0} if "lora" in strategy else {}
    if strategy.startswith("q"):
        options["compute_dtype"] = str(dtype).removeprefix("torch.")
    preset, layers = LAYERS.get(strategy, (strategy, {}))
    plan = get_strategy(preset, options | layers, plugins=PLUGINS)
    torch.manual_seed(0)
    backbone = load_model(name, plan, plugins=PLUGINS)
    applied = apply_strategy(backbone.model, backbone.anatomy, plan)
    for parameter_name, parameter in backbone.model.named_parameters():
        if any(
            start in parameter_name for start in ("lora_B", "vera_lambda_b", "oft_R")
        ):  # at 0, where others have no gradient
            nn.init.normal_(parameter, std=0.1)
    return backbone, applied


def _text(backbone, prompt="a picture"):
    return backbone.text_batch(CAPTIONS, prompt=prompt, max_tokens=160)


def _step(backbone, applied, dtype):
    """Loss, and gradients by name, of a training step without dropout."""
    module = CaptioningModule(backbone, applied, "a picture").eval()
    for child in module.modules():
        child.training = isinstance(child, Linear8bitLt)  # which multiplies by other weights than at rest
    module.zero_grad()
    text = _text(backbone)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == BF16):
        loss = module(text.input_ids, text.attention_mask, text.labels, backbone.pixel_values(images(3)))["loss"]
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@torch.no_grad()
def _logits(backbone, dtype):
    backbone.model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == BF16):
        return backbone.decode(backbone.encode(backbone.pixel_values(images(3)), prompt="a picture"), _text(backbone))[1]


@torch.no_grad()
def _captions(backbone):
    backbone.model.eval()
    features = backbone.encode(backbone.pixel_values(images(3)))
    inputs = backbone.generation_inputs(3, features.device, "", GenerationConfig(max_new_tokens=6))
    with backbone.generating() as generate_ids:
        return backbone.captions(generate_ids(features, *inputs))


def _apart(found, expected):
    """The distance of two sets of tensors, relative to the second."""
    whole, other = (torch.cat([t.flatten().double() for t in several]) for several in (found, expected))
    return float((whole - other).norm() / other.norm())


def _snapshot(backbone):
    state = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in _tensors(backbone)}
    return {name: type(module) for name, module in backbone.model.named_modules()}, state, set(vars(backbone))


def _installed(backbone):
    types, _, attributes = _snapshot(backbone)
    return types, attributes


def _tensors(backbone):
    yield from backbone.model.named_parameters(remove_duplicate=False)
    yield from backbone.model.named_buffers(remove_duplicate=False)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """`as_on_a_gpu(KERNEL)` has a kernel for GPUs installed on a CPU too, where it computes the same without CUDA graphs."""

    def switch(name):
        anywhere = [replace(k, applies=lambda *_: True) if k.name == name else k for k in KERNELS]
        monkeypatch.setattr(apply, "KERNELS", tuple(anywhere))
        monkeypatch.setattr(graphed_decoding, "generator_for", lambda b, _: nullcontext(StaticGenerator(b, graph=False)))

    return switch


@pytest.mark.parametrize(("kernel", "name", "strategy", "dtype"), ROWS, ids=lambda value: str(value).removeprefix("torch."))
def test_kernels_compute_what_the_plain_model_computes(kernel, name, strategy, dtype, sharp_folder, as_on_a_gpu):
    as_on_a_gpu(kernel)
    backbone, applied = _plain(sharp_folder(name), strategy, dtype)
    loss, gradients = _step(backbone, applied, dtype)
    logits, captions = _logits(backbone, dtype), _captions(backbone) if dtype == FP32 else None
    types, state, attributes = _snapshot(backbone)
    names = backbone.model.state_dict().keys()

    acceleration = accelerate(backbone, dtype=dtype, kernels="auto" if kernel == "auto" else (kernel,))
    assert kernel in (*acceleration.installed, "auto")
    assert backbone.model.state_dict().keys() == names
    found, others = _step(backbone, applied, dtype)
    assert others.keys() == gradients.keys()
    loss_noise, noise = (1e-6, 1e-4) if dtype == FP32 else NOISE[kernel]
    assert found == pytest.approx(loss, rel=loss_noise)
    assert _apart(others.values(), gradients.values()) < noise
    eights = strategy == "lora-int8"  # at rest inputs are rounded to 8 bits, one step up or down
    assert _apart([_logits(backbone, dtype)], [logits]) < (noise if dtype == BF16 else 5e-3 if eights else 1e-5)
    assert captions is None or eights or _captions(backbone) == captions

    switched = _installed(backbone)
    again = accelerate(backbone, dtype=dtype, kernels="auto" if kernel == "auto" else (kernel,))
    assert again.installed == acceleration.installed and _installed(backbone) == switched
    again.undo()
    assert _installed(backbone) == switched

    for _ in range(2):
        acceleration.undo()
    types_after, state_after, attributes_after = _snapshot(backbone)
    assert types_after == types and attributes_after == attributes
    for key, tensor in state.items():
        assert state_after[key].dtype == tensor.dtype and torch.equal(state_after[key], tensor), key
    assert _step(backbone, applied, dtype)[0] == loss


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, pytest.param(BF16, marks=pytest.mark.exhaustive)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", tiny_models(PLUGINS, of_each=1))
def test_auto_computes_what_none_computes_with_every_strategy_that_a_backbone_supports(name, dtype, sharp_folder):
    compared = 0
    for strategy in PLUGINS.names("strategy"):
        plan = get_strategy(strategy, plugins=PLUGINS)
        if not plan.trains or why_unsupported(sharp_folder(name), plan, plugins=PLUGINS) is not None:
            continue
        backbone, applied = _plain(sharp_folder(name), strategy, dtype)
        loss, captions = _step(backbone, applied, dtype)[0], _captions(backbone)
        accelerate(backbone, dtype=dtype)
        found, again = _step(backbone, applied, dtype)[0], _captions(backbone)
        assert found == pytest.approx(loss, rel=1e-6 if dtype == FP32 else NOISE["auto"][0]), strategy
        eights = strategy == "lora-int8"  # at rest inputs are rounded to 8 bits, one step up or down
        assert dtype == BF16 or eights or again == captions, strategy
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("strategy", ["full", "lora", "qlora-decoder", "lora-int8"])
def test_packed_captions_have_the_loss_of_padded_ones_by_both_computations(
    strategy, dtype, absorbed, sharp_folder, monkeypatch
):
    asked = []
    monkeypatch.setattr(packed_decoder, "saves_products", lambda *_: asked.append(1) or absorbed)
    backbone, applied = _plain(sharp_folder("blip"), strategy, dtype)
    loss, gradients = _step(backbone, applied, dtype)
    accelerate(backbone, dtype=dtype, kernels=("sdpa", "lora", "quantized", "packed_decoder"))
    found, others = _step(backbone, applied, dtype)
    assert asked and found == pytest.approx(loss, rel=1e-6 if dtype == FP32 else NOISE["auto"][0])
    assert _apart(others.values(), gradients.values()) < (1e-4 if dtype == FP32 else NOISE["auto"][1])


@pytest.mark.parametrize("strategy", ["full", "encoder-frozen", "lora", "qlora", "lora-int8", "bitfit"])
@pytest.mark.parametrize("name", ["blip", "blip2-opt", "vit-gpt2"])
def test_without_kernels_no_class_is_ours(name, strategy, sharp_folder):
    backbone, _, acceleration = prepare_model(
        sharp_folder(name), get_strategy(strategy, plugins=PLUGINS), plugins=PLUGINS, dtype=BF16, kernels="none"
    )
    assert acceleration.installed == ()
    packages = {type(module).__module__.split(".")[0] for module in backbone.model.modules()}
    assert packages <= {"torch", "transformers", "peft", "bitsandbytes"}


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "strategy"),
    [("blip", s) for s in ("full", "encoder-frozen", "lora", "qlora", "lora-int8", "bitfit")] + [("vit-gpt2", "lora")],
)
def test_loaded_with_its_kernels_an_adapter_gives_the_same_bits(name, strategy, dtype, sharp_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("medgraft.hardware.bf16_supported", lambda kind: True)  # emulated where it is not
    backbone, applied = _plain(sharp_folder(name), strategy, dtype)
    untrained = in_place_digests(applied)
    acceleration = accelerate(backbone, dtype=dtype)
    _step(backbone, applied, dtype)
    torch.optim.AdamW([p for p in applied.model.parameters() if p.requires_grad], lr=1e-2).step()
    manifest = _manifest(sharp_folder(name), backbone, applied)
    changes = {"dtype": "bf16" if dtype == BF16 else "fp32", "acceleration": acceleration.installed, "prompt": "a picture"}
    folder = tmp_path / "adapter"
    write_package(folder, manifest.model_copy(update=changes), lambda new: save_weights(new, applied, untrained))
    loaded = load_adapter(folder, plugins=PLUGINS, backbone=sharp_folder(name))
    assert loaded.acceleration == acceleration.installed
    assert torch.equal(_logits(loaded.backbone, dtype), _logits(backbone, dtype))


def test_attention_maps_are_the_plain_models(sharp_folder):
    backbone, _ = _plain(sharp_folder("blip"), "zero-shot", FP32)
    pixels = backbone.pixel_values(images(3))
    expected = caption_maps(backbone, pixels, CAPTIONS, options=MapOptions(method="gradient"))
    accelerate(backbone, dtype=FP32)
    for ours, theirs in zip(
        caption_maps(backbone, pixels, CAPTIONS, options=MapOptions(method="gradient")), expected, strict=True
    ):
        assert abs(ours.mean() - theirs.mean()).max() < 1e-6
    with backbone.eager_attention():  # and the loss does not come by packed captions then
        assert torch.isfinite(backbone.loss(backbone.encode(pixels), _text(backbone)))


def test_a_random_copy_of_a_model_has_none_of_its_kernels(sharp_folder):
    backbone, _ = _plain(sharp_folder("blip"), "zero-shot", FP32)
    accelerate(backbone, dtype=FP32)
    other = backbone.randomly_initialized()
    features, text = other.encode(other.pixel_values(images(3))), _text(other)
    torch.testing.assert_close(other.loss(features, text), other.decode(features, text)[0])
    assert not torch.equal(other.loss(features, text), backbone.loss(features, text))


def test_every_kernel_is_in_the_matrix():
    assert {kernel.name for kernel in KERNELS} <= {row[0] for row in ROWS}
