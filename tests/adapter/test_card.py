"""The card's recipes run as they stand, and its metadata are those of the hub."""

import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import medgraft
from medgraft.adapter import locate_adapter, read_manifest, update_manifest
from medgraft.adapter.card import card_text
from medgraft.benchmark import execute
from medgraft.config import run_config
from medgraft.plugin import PluginManager
from medgraft.strategies import PartPlan, Strategy


@pytest.fixture(scope="module")
def hub(blip_folder, tmp_path_factory):
    """The hub's cache with one model, someone/little-blip; and the folder of its snapshot."""
    cache = tmp_path_factory.mktemp("hub")
    model = cache / "models--someone--little-blip"
    shutil.copytree(blip_folder, model / "snapshots/0a1b2c")
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0a1b2c")
    return cache, model / "snapshots/0a1b2c"


@torch.no_grad()
def _logits(model, text):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return model.eval()(pixel_values=pixels, input_ids=text.input_ids, attention_mask=text.attention_mask).logits


SHIPPED = Path(__file__).parents[2] / "adapters/blip-nano-lora"
MIXED = ("strategy.vision.mode=full", "strategy.vision.bias_only=true")  # biases in place, LoRA on the text


@pytest.mark.parametrize(
    ("strategy", "overrides", "where", "imports"),
    [
        ("lora", (), "folder", ["peft", "transformers"]),
        ("bitfit", (), "hub", ["safetensors.torch", "transformers"]),
        pytest.param("lora", MIXED, "hub", ["peft", "safetensors.torch", "transformers"], marks=pytest.mark.slow),
    ],
    ids=["peft", "in place", "both"],
)
def test_its_recipes_give_the_adapter(
    strategy, overrides, where, imports, blip_folder, hub, phantoms_folder, tmp_path, monkeypatch, capsys
):
    cache, snapshot = hub
    config = run_config(
        backbone=f"blip:{snapshot if where == 'hub' else blip_folder}", strategy=strategy, data=f"roco:{phantoms_folder}",
        max_images=4, overrides=["train.max_steps=2", "train.learning_rate=0.05", "train.bf16=false", *overrides],
    )  # fmt: skip
    backbone = execute(config, tmp_path, plugins=PluginManager(), evaluate=False, checkpoints=False).backbone
    card = (locate_adapter(tmp_path) / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    shutil.copytree(blip_folder, "weights")
    Image.new("L", (64, 64)).save("image.jpg")
    with_medgraft, plain = re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)
    exec(with_medgraft, {})
    assert capsys.readouterr().out.startswith("['")
    assert re.findall(r"^from (\S+) import", plain, re.M) == imports
    found = {}
    exec(plain, found)
    text = backbone.text_batch(["axial ct showing a cyst.", "normal."], prompt="", max_tokens=32)
    with torch.no_grad():
        pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        expected = backbone.decode(backbone.encode(pixels), text)[1]
    torch.testing.assert_close(_logits(found.get("model", found["base"]), text), expected, rtol=1e-4, atol=1e-4)
    untrained = type(found["base"]).from_pretrained(blip_folder)
    assert (expected - _logits(untrained, text)).abs().max() > 1e-2


def test_weights_of_a_plugin_are_found_by_medgraft(tmp_path, monkeypatch):
    shutil.copytree(SHIPPED, tmp_path / "adapter")
    manifest = read_manifest(tmp_path / "adapter")
    training = manifest.training | {"model_class": "BlipForConditionalGeneration"}
    update_manifest(tmp_path / "adapter", manifest.model_copy(update={"training": training}))
    card = (tmp_path / "adapter/README.md").read_text()
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)[1], found)
    assert found["weights"] == medgraft.load_backbone("blip-nano").source
    assert found["model"].peft_config["default"].r == 6
    assert "base_model" not in ModelCard(card).data.to_dict()


@pytest.mark.parametrize(
    ("backbone", "base"),
    [("blip:someone/little-blip", {"base_model": "someone/little-blip", "base_model_relation": "adapter"}), ("blip:./b", {})],
)
@pytest.mark.parametrize(("uses_adapter", "library"), [(True, "peft"), (False, "medgraft")])
def test_its_metadata_are_the_hubs(backbone, base, uses_adapter, library):
    manifest = read_manifest(SHIPPED)
    settings = manifest.strategy_settings if uses_adapter else Strategy(text=PartPlan(mode="full"))
    changed = manifest.model_copy(update={"backbone": backbone, "strategy_settings": settings, "strategy": "peft:LOHA"})
    tags = ["medgraft", "image-captioning", "peft:LOHA"]
    assert ModelCard(card_text(changed, SHIPPED, "adapter")).data.to_dict() == base | {
        "library_name": library, "pipeline_tag": "image-to-text", "tags": tags,
    }  # fmt: skip
