"""Packages: bit-identical after loading, plain PEFT where it can be, refused where they do not belong."""

import json
import shutil

import pytest
import torch
from compared import logits
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BlipForConditionalGeneration

import medgraft
from medgraft.adapter import locate_adapter, saving
from medgraft.backbones.blip import BlipBackbone
from medgraft.benchmark import execute
from medgraft.config import run_config
from medgraft.errors import AdapterError
from medgraft.models import load_model
from medgraft.strategies import apply_strategy, get_strategy


@pytest.fixture(scope="module")
def trained(blip_folder, phantoms_folder, tmp_path_factory):
    """A LoRA package and the backbone that it was saved from."""
    from medgraft.plugin import PluginManager

    return _train("lora", blip_folder, phantoms_folder, tmp_path_factory.mktemp("lora") / "adapter", PluginManager())


def _train(strategy, blip_folder, phantoms_folder, out, plugins, *overrides):
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy=strategy, data=f"roco:{phantoms_folder}", max_images=8,
        overrides=["train.max_steps=2", "train.per_device_train_batch_size=4", "train.bf16=false", *overrides],
    )  # fmt: skip
    backbone = execute(config, out, plugins=plugins, evaluate=False, checkpoints=False).backbone
    return locate_adapter(out), backbone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "strategies", "found"),
    [
        ("vit-gpt2", ["qlora", "oft"], {"qlora": "identical"}),
        ("blip", ["pissa", "full"], {"pissa": "close", "full": "identical"}),
    ],
)
def test_presets_of_the_published_size_come_back(backbone, strategies, found, full_size, capsys):
    size = ["--layers", "2", "--width", "64", "--image-size", "64"]
    assert full_size.main(["--backbone", backbone, *size, "--strategies", *strategies]) == 0
    assert dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()) == found


def test_a_lora_package_loads_in_plain_peft(trained, blip_folder):
    folder, backbone = trained
    base = BlipForConditionalGeneration.from_pretrained(blip_folder)
    plain = PeftModel.from_pretrained(base, folder).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    text = backbone.text_batch(["axial ct showing a cyst.", "normal."], prompt="", max_tokens=32)
    with torch.no_grad():
        plain_logits = plain(pixel_values=pixels, input_ids=text.input_ids, attention_mask=text.attention_mask).logits
    torch.testing.assert_close(plain_logits, logits(backbone), rtol=1e-5, atol=1e-5)
    untrained = BlipForConditionalGeneration.from_pretrained(blip_folder)
    assert not torch.equal(logits(medgraft.load_adapter(folder).backbone), untrained(pixels, text.input_ids).logits)


def test_a_plain_peft_adapter_loads_here(blip_folder, tmp_path):
    torch.manual_seed(0)
    base = BlipForConditionalGeneration.from_pretrained(blip_folder)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    loaded = medgraft.load_adapter(tmp_path / "theirs", backbone=f"blip:{blip_folder}")
    backbone = loaded.backbone
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    text = backbone.text_batch(["axial ct showing a cyst.", "normal."], prompt="", max_tokens=32)
    with torch.no_grad():
        expected = model.eval()(pixel_values=pixels, input_ids=text.input_ids, attention_mask=text.attention_mask).logits
    torch.testing.assert_close(logits(backbone), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", ["lora", "qlora", "lora-int8"])
def test_loaded_it_computes_as_in_training_to_the_bit(strategy, blip_folder, phantoms_folder, tmp_path, plugins):
    odd = ("strategy.r=6", "strategy.lora_alpha=9")  # a scaling that is no power of two
    folder, backbone = _train(strategy, blip_folder, phantoms_folder, tmp_path / "a", plugins, "train.learning_rate=0.1", *odd)
    again = medgraft.load_adapter(folder).backbone
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            assert torch.equal(logits(again), logits(backbone))


def test_a_full_package_holds_only_what_changed(blip_folder, phantoms_folder, tmp_path, plugins):
    folder, backbone = _train("full", blip_folder, phantoms_folder, tmp_path / "a", plugins, "train.weight_decay=0")
    tensors = load_file(folder / "trained_tensors.safetensors")
    every = dict(backbone.model.named_parameters())
    assert set(tensors) <= set(every)
    assert not (folder / "adapter_model.safetensors").exists()
    frozen, _ = _train("encoder-frozen", blip_folder, phantoms_folder, tmp_path / "b", plugins)
    assert all(name.startswith("text_decoder") for name in load_file(frozen / "trained_tensors.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_before_training_are_known_by_the_checkpoint(dtype, blip_folder, tmp_path, plugins, monkeypatch):
    folder = tmp_path / "base"
    shutil.copytree(blip_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    strategy = get_strategy("full", plugins=plugins)
    backbone = load_model(f"blip:{folder}", strategy, plugins=plugins)
    applied = apply_strategy(backbone.model, backbone.anatomy, strategy)
    every = saving.in_place_digests(applied)
    hashed = []
    plain = saving.tensor_digests
    monkeypatch.setattr(saving, "tensor_digests", lambda some: hashed.extend(some) or plain(some))
    known = backbone.checkpoint_digests(backbone.source)
    assert saving.in_place_digests(applied, known) == every
    assert set(hashed) == set(every) - set(known)
    assert len(hashed) < 0.1 * len(every)
    changed = applied.direct[0]
    dict(backbone.model.named_parameters())[changed].data.add_(1)
    saving.save_weights(tmp_path, applied, saving.in_place_digests(applied, known) | {changed: every[changed]})
    assert list(load_file(tmp_path / saving.TENSORS)) == [changed]


def test_a_backbone_with_a_fingerprint_of_its_own_has_no_checkpoint_digests(blip_folder):
    class Own(BlipBackbone):
        @classmethod
        def fingerprint(cls, source):
            return "0" * 64

    assert BlipBackbone.checkpoint_digests(str(blip_folder)) and Own.checkpoint_digests(str(blip_folder)) == {}


def test_manifest_and_card_say_what_it_is(trained):
    folder, _ = trained
    manifest = json.loads((folder / "medgraft.json").read_text())
    assert manifest["backbone"] == "blip:./weights"
    assert manifest["strategy_settings"]["options"]["r"] == 16
    assert set(manifest["files"]) == {"adapter_model.safetensors", "adapter_config.json", "trained_on.safetensors"}
    assert manifest["data"]["fingerprint"] and "path" not in manifest["data"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    card = (folder / "README.md").read_text()
    assert "vision adapter, text adapter" in card and "PeftModel.from_pretrained" in card and "bridge" not in card


def test_the_base_may_have_moved(trained, blip_folder, tmp_path):
    shutil.copytree(blip_folder, tmp_path / "moved")
    loaded = medgraft.load_adapter(trained[0], backbone=f"blip:{tmp_path / 'moved'}")
    assert torch.equal(logits(loaded.backbone), logits(trained[1]))


def _copy(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_altered_cut_and_missing_files_are_found(trained, tmp_path):
    folder = _copy(trained, tmp_path)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(AdapterError, match="was altered or cut off"):
        medgraft.load_adapter(folder)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"is incomplete: adapter_model.safetensors is missing"):
        medgraft.load_adapter(folder)


def test_a_manifest_of_the_future_is_refused(trained, tmp_path):
    folder = _copy(trained, tmp_path)
    manifest = json.loads((folder / "medgraft.json").read_text()) | {"format": 2}
    (folder / "medgraft.json").write_text(json.dumps(manifest))
    with pytest.raises(AdapterError, match="cannot be read by this medgraft: format"):
        medgraft.load_adapter(folder)


def test_no_folder_and_no_adapter(tmp_path):
    with pytest.raises(AdapterError, match="There is no adapter folder"):
        medgraft.load_adapter(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match="is no medgraft adapter"):
        medgraft.load_adapter(tmp_path)


def test_peft_weights_for_another_shape_are_refused(blip_folder, tmp_path):
    from transformers import BlipConfig

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BlipConfig(text_config={**shape, "encoder_hidden_size": 32}, vision_config={**shape, "image_size": 32})
    model = get_peft_model(BlipForConditionalGeneration(config), LoraConfig(r=2, target_modules=["query"]))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(AdapterError, match="does not fit"):
        medgraft.load_adapter(tmp_path, backbone=f"blip:{blip_folder}")
