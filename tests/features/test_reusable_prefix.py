"""Where models can be cut, what the key depends on, and training, captioning and loading with stored features."""

from functools import partial

import pytest
import torch

from medgraft.benchmark import execute
from medgraft.benchmark.record import FeatureUse
from medgraft.config import run_config
from medgraft.data.images import open_image
from medgraft.features import collections, find_reusable_prefix, open_cached_features
from medgraft.features.reusable_prefix import prefix_key, stored_dtype
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import PartPlan, Strategy, apply_strategy
from medgraft.testing.samples import CAPTIONS, images

PLUGINS = PluginManager()
FULL, ADAPTER = PartPlan(mode="full"), PartPlan(mode="adapter")


def _applied(name, tiny_folder, strategy):
    kind, folder = tiny_folder(name)
    backbone = load_model(f"{kind}:{folder}", strategy, plugins=PLUGINS)
    return backbone, apply_strategy(backbone.model, backbone.anatomy, strategy)


@pytest.mark.parametrize(("name", "strategy", "seam"), [
    ("blip", Strategy(), "vision"),
    ("blip", Strategy(text=FULL), "vision"),
    ("blip", Strategy(text=ADAPTER), "vision"),
    ("blip", Strategy(vision=FULL), None),
    ("blip", Strategy(vision=ADAPTER, text=ADAPTER), None),
    ("blip", Strategy(vision=PartPlan(mode="full", roles=("norm",))), None),
    ("blip2-opt", Strategy(text=ADAPTER), "bridge"),
    ("blip2-opt", Strategy(bridge=FULL), "vision"),
    ("blip2-t5", Strategy(bridge=ADAPTER, text=ADAPTER), "vision"),
    ("blip2-t5", Strategy(vision=FULL, text=FULL), None),
    ("instructblip-t5", Strategy(text=ADAPTER, quantization="nf4"), "bridge"),
    ("vit-gpt2", Strategy(text=FULL), "vision"),
    ("git", Strategy(text=ADAPTER), "bridge"),
    ("qwen2.5-vl", Strategy(bridge=FULL, text=FULL), None),
])  # fmt: skip
def test_the_cut_is_found_on_the_model(name, strategy, seam, tiny_folder):
    backbone, _ = _applied(name, tiny_folder, strategy)
    cut = find_reusable_prefix(backbone)
    assert (cut.seam.name if cut.seam else None) == seam
    if seam is None:
        assert cut.reason.startswith("part '")


def test_dropout_below_the_seam_forbids_a_cut(tiny_folder):
    backbone, _ = _applied("blip", tiny_folder, Strategy())
    assert find_reusable_prefix(backbone).seam is not None
    backbone.model.vision_model.extra = torch.nn.Dropout(0.1)
    assert find_reusable_prefix(backbone).seam is None
    backbone.model.eval()
    assert find_reusable_prefix(backbone).seam is not None


def test_the_key_holds_everything_that_decides(tiny_folder):
    backbone, _ = _applied("instructblip-t5", tiny_folder, Strategy())
    vision, bridge = backbone.seams
    key = prefix_key(backbone, bridge, dtype=torch.bfloat16, prompt="a")
    assert key == prefix_key(backbone, bridge, dtype=torch.bfloat16, prompt="a")
    assert key != prefix_key(backbone, bridge, dtype=torch.float32, prompt="a")
    assert key != prefix_key(backbone, bridge, dtype=torch.bfloat16, prompt="b")  # the Q-Former reads it
    assert prefix_key(backbone, vision, dtype=torch.bfloat16, prompt="a") == prefix_key(
        backbone, vision, dtype=torch.bfloat16, prompt="b"
    )
    quantised, _ = _applied("instructblip-t5", tiny_folder, Strategy(quantization="nf4"))
    assert (
        prefix_key(quantised, vision, dtype=torch.bfloat16, prompt="")["prefix"]
        != prefix_key(backbone, vision, dtype=torch.bfloat16, prompt="")["prefix"]
    )
    before = prefix_key(backbone, vision, dtype=torch.bfloat16, prompt="")
    backbone.model.language_model.lm_head.weight.data.add_(1)  # above the seam
    assert prefix_key(backbone, vision, dtype=torch.bfloat16, prompt="") == before
    backbone.model.vision_model.post_layernorm.bias.data[0] += 1
    assert prefix_key(backbone, vision, dtype=torch.bfloat16, prompt="") != before
    backbone.image_processor.size = {"height": 16, "width": 16}
    assert prefix_key(backbone, vision, dtype=torch.bfloat16, prompt="")["images"] != before["images"]


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_prefix_known_by_its_base_is_still_checked(quantization, tiny_folder):
    strategy = Strategy(text=ADAPTER, quantization=quantization)

    def key(backbone, base="a" * 64):
        return prefix_key(backbone, backbone.seams[0], dtype=torch.bfloat16, prompt="", base=base)["prefix"]

    backbone, _ = _applied("instructblip-t5", tiny_folder, strategy)
    again, _ = _applied("instructblip-t5", tiny_folder, strategy)
    before = key(backbone)
    assert key(again) == before
    assert key(again, base="b" * 64) != before
    assert key(again, base=None) != before  # one hash is never taken for the other
    layer = again.model.vision_model.encoder.layers[0]
    again.model.language_model.lm_head.weight.data.add_(1)  # above the seam
    assert key(again) == before
    changes = [again.model.vision_model.post_layernorm.bias.data, layer.mlp.fc1.weight.data, layer.mlp.fc1.bias.data]
    for data in changes:  # in memory, as nothing but a full look would see
        old = data.clone()
        data.view(-1)[-1] += 1
        assert key(again) != before
        data.copy_(data.flip(0))  # the same numbers elsewhere
        assert key(again) != before
        data.copy_(old)
        assert key(again) == before
    if quantization == "nf4":
        other, _ = _applied("instructblip-t5", tiny_folder, strategy.model_copy(update={"double_quantization": False}))
        assert key(other) != before


def test_a_run_knows_its_prefix_by_the_base_and_a_backbone_given_by_hand_by_its_tensors(
    blip_folder, run, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path / "store"))
    result, _ = run(tmp_path / "a", "encoder-frozen", "train.bf16=false")
    backbone = load_model(f"blip:{blip_folder}", Strategy(), plugins=PLUGINS)
    apply_strategy(backbone.model, backbone.anatomy, Strategy())
    own = [
        prefix_key(backbone, backbone.seams[0], dtype=torch.float32, prompt="", base=base)["prefix"]
        for base in (result.record.base_fingerprint, None)
    ]
    (entered,) = collections()
    assert entered.key["prefix"] == own[0]
    monkeypatch.setattr("medgraft.features.reusable_prefix.tensor_checksum", lambda tensor: "")  # by hand all are hashed
    cached, _ = open_cached_features(backbone, dtype=torch.float32, prompt="", max_gb=1)
    assert cached.store.key["prefix"] == own[1]
    backbone.model.vision_model.post_layernorm.bias.data[0] += 1
    cached, _ = open_cached_features(backbone, dtype=torch.float32, prompt="", max_gb=1)
    assert cached.store.key["prefix"] not in own


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "name", ["blip", "blip2-opt", "blip2-t5", "instructblip-vicuna", "vit-gpt2", "deit-bert", "git", "qwen2.5-vl"]
)
def test_loss_from_stored_features_is_bit_identical(name, bf16, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path / "store"))
    backbone, _ = _applied(name, tiny_folder, Strategy())
    paths = []
    for i, image in enumerate(images(3)):
        paths.append(tmp_path / f"{i}.png")
        image.save(paths[-1])
    prompt, dtype = backbone.default_prompt, torch.bfloat16 if bf16 else torch.float32
    text = backbone.text_batch((*CAPTIONS, "normal."), prompt=prompt, max_tokens=160)
    for seam in backbone.seams:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            computed = backbone.decode(
                backbone.encode(backbone.pixel_values([open_image(p) for p in paths]), prompt=prompt), text
            )
            cached, _ = open_cached_features(backbone, dtype=dtype, prompt=prompt, max_gb=1)
            cached.seam = seam
            cached.store = type(cached.store)(prefix_key(backbone, seam, dtype=dtype, prompt=prompt), max_bytes=10**9)
            cached.dtype = torch.bfloat16 if bf16 and seam.consumer_casts_input else torch.float32
            cached.build(paths, batch_size=3)
            features = torch.stack(cached.stored(paths))
            for above in backbone.seams[backbone.seams.index(seam) + 1 :]:
                features = backbone.forward_to(above.name, features, prompt=prompt)
            stored = backbone.decode(features, text)
        assert torch.equal(stored[0], computed[0]) and torch.equal(stored[1], computed[1]), seam.name


def test_a_corrected_stage_is_another_prefix(tiny_folder):
    backbone, _ = _applied("blip", tiny_folder, Strategy())

    class Corrected(type(backbone)):
        def forward_to(self, seam, inputs, *, prompt):
            return super().forward_to(seam, inputs, prompt=prompt) * 2

    before = prefix_key(backbone, backbone.seams[0], dtype=torch.bfloat16, prompt="")
    backbone.__class__ = Corrected
    assert prefix_key(backbone, backbone.seams[0], dtype=torch.bfloat16, prompt="")["code"] != before["code"]
    backbone.config.vision_config.layer_norm_eps = 0.1
    assert prefix_key(backbone, backbone.seams[0], dtype=torch.bfloat16, prompt="")["config"] != before["config"]


@pytest.mark.parametrize(("quantization", "compute", "kept"), [
    ("none", "bfloat16", torch.bfloat16), ("nf4", "bfloat16", torch.bfloat16), ("nf4", "float16", torch.float32),
    ("int8", "bfloat16", torch.float32),  # 8-bit layers compute in the dtype of their input
])  # fmt: skip
def test_features_are_kept_in_what_reads_them(quantization, compute, kept, tiny_folder):
    strategy = Strategy(text=ADAPTER, quantization=quantization, compute_dtype=compute)
    backbone, _ = _applied("blip", tiny_folder, strategy)
    assert stored_dtype(backbone, backbone.seams[0], torch.bfloat16) == kept
    assert stored_dtype(backbone, backbone.seams[0], torch.float32) == torch.float32


@pytest.fixture
def run(blip_folder, phantoms_folder, logged):
    return partial(_run, logged, blip_folder, phantoms_folder)


def _run(logged, blip_folder, phantoms_folder, out, strategy, *overrides):
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy=strategy, data=f"roco:{phantoms_folder}",
        overrides=["train.max_steps=6", "train.per_device_train_batch_size=4", "generation.max_new_tokens=8", *overrides],
    )  # fmt: skip
    with logged() as lines:
        result = execute(config, out, plugins=PLUGINS)
    return result, next(line for line in lines if line.startswith("features:"))


@pytest.mark.slow
@pytest.mark.parametrize("bf16", ["true", "false"])
@pytest.mark.parametrize("strategy", ["encoder-frozen", "qlora-decoder"])
def test_training_with_and_without_the_store(strategy, bf16, run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path / "store"))
    setting = f"train.bf16={bf16}"
    computed, line = run(tmp_path / "a", strategy, setting, "features.enabled=false")
    assert line == "features: not reused: features.enabled is false"
    built, line = run(tmp_path / "b", strategy, setting)
    assert line.startswith("features: reused from seam 'vision': all below it is frozen; 0 found")
    assert built.record.features.built == built.record.images["train"] + built.record.images["test"]
    found, _ = run(tmp_path / "c", strategy, setting)
    assert found.record.features.built == 0
    assert found.record.train_loss == built.record.train_loss  # bit-identical from the store
    tolerance = 2e-2 if bf16 == "true" else 1e-5  # features were computed in other batches
    assert built.record.train_loss == pytest.approx(computed.record.train_loss, rel=tolerance)
    assert found.evaluation.predictions == built.evaluation.predictions
    if bf16 == "false":
        assert built.evaluation.predictions == computed.evaluation.predictions


def test_what_does_not_fit_is_computed(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path / "store"))
    monkeypatch.setattr("medgraft.features.store._SHARD_BYTES", 8 * 17 * 64 * 4)
    whole, _ = run(tmp_path / "a", "encoder-frozen", "train.bf16=false", "features.enabled=false")
    part, _ = run(tmp_path / "b", "encoder-frozen", "train.bf16=false", "features.max_gb=0.0001")
    assert 0 < part.record.features.built < part.record.images["train"]
    assert part.record.train_loss == pytest.approx(whole.record.train_loss, rel=1e-5)  # batches of both kinds of rows


def test_an_edited_image_is_another_image(blip_folder, phantoms_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path / "store"))
    backbone = load_model(f"blip:{blip_folder}", Strategy(), plugins=PLUGINS)
    apply_strategy(backbone.model, backbone.anatomy, Strategy())
    path = tmp_path / "x.png"
    images(1)[0].save(path)
    first, _ = open_cached_features(backbone, dtype=torch.float32, prompt="", max_gb=1)
    before = first.features([path])
    images(1)[0].rotate(90).save(path)
    second, _ = open_cached_features(backbone, dtype=torch.float32, prompt="", max_gb=1)
    assert not torch.equal(second.features([path]), before)


def test_strategies_that_train_the_prefix_say_so(run, tmp_path):
    result, line = run(tmp_path, "full")
    assert line == "features: not reused: part 'vision' is trained"
    assert result.record.features == FeatureUse(seam=None, reason="part 'vision' is trained")
