"""`image.size`: what the models compute at another size, where it is remembered, and what is refused."""

import json

import pytest
import torch
import transformers

import medgraft
from medgraft.adapter import locate_adapter
from medgraft.backbones import load_without_weights
from medgraft.backbones.blip import BlipBackbone
from medgraft.backbones.image_size import config_for_size
from medgraft.backbones.visible_region import resize_to
from medgraft.backbones.vision_encoder_decoder import VisionEncoderDecoderBackbone
from medgraft.benchmark import execute, read_record
from medgraft.benchmark.recording import run_id
from medgraft.cli.main import main
from medgraft.config import GenerationConfig, changed_run
from medgraft.conversion.merge import merge_adapter
from medgraft.errors import BackboneError
from medgraft.features.reusable_prefix import prefix_key
from medgraft.models import load_model
from medgraft.prepare import prepare_captioner
from medgraft.saliency import caption_maps
from medgraft.strategies import Strategy
from medgraft.testing.samples import CAPTIONS, images

SIZED = [
    "blip", "blip2-opt", "instructblip-t5", "git", "vit-gpt2", "deit-bert", "dinov2-trocr", "clip-bart", "swin-roberta",
    "beit-electra",
]  # fmt: skip
QWEN = ["qwen2.5-vl", "qwen2-vl"]


@pytest.fixture
def load(tiny_folder, plugins):
    def of_size(name, size):
        backbone, folder = tiny_folder(name)
        return load_model(f"{backbone}:{folder}", Strategy(), plugins=plugins, image_size=size)

    return of_size


def _tower(backbone):
    model = backbone.model
    return model.git.image_encoder if hasattr(model, "git") else getattr(model, "vision_model", None) or model.encoder


@pytest.mark.parametrize("name", SIZED)
def test_features_are_those_of_transformers_own_interpolation(name, load):
    backbone = load(name, 48)
    pixels = backbone.pixel_values(images(2))
    assert pixels.shape[-2:] == (48, 48)
    tower = _tower(backbone)
    asked = {} if name == "dinov2-trocr" else {"interpolate_pos_encoding": True}  # DINOv2 does it by itself
    with torch.no_grad():
        first = backbone.forward_to("vision", pixels, prompt=backbone.default_prompt)
        assert torch.equal(first, tower(pixels, **asked).last_hidden_state)
        own = load(name, None)
        assert not torch.equal(own.forward_to("vision", own.pixel_values(images(2)), prompt="")[:, 0], first[:, 0])


@pytest.mark.parametrize("name", [*SIZED, *QWEN])
def test_everything_follows_the_size(name, load):
    backbone, prompt = load(name, 48), load(name, None).default_prompt
    pixels = backbone.pixel_values(images(2))
    with torch.no_grad():
        features = backbone.encode(pixels, prompt=prompt)
        loss = backbone.loss(features, backbone.text_batch(CAPTIONS, prompt=prompt))
    assert torch.isfinite(loss)
    assert len(backbone.generate(features, prompt=prompt, options=GenerationConfig(max_new_tokens=4))) == 2
    side = 3 if name in QWEN else 6  # patches of 8 pixels, in Qwen-VL's merger 4 to a token
    maps = caption_maps(backbone, pixels, CAPTIONS, prompt=prompt)
    assert {word.grid.shape for found in maps for word in found.words} == {(side, side)}
    assert backbone.visible_region(60, 40) == load(name, None).visible_region(60, 40)


@pytest.mark.parametrize(
    ("name", "own", "larger"),
    [
        ("blip", {"vision": 17, "bridge": 16, "text": 40}, {"vision": 37, "bridge": 36, "text": 40}),
        ("git", {"vision": 17, "bridge": 16, "text": 57}, {"vision": 37, "bridge": 36, "text": 77}),
        ("vit-gpt2", {"vision": 17, "bridge": 16, "text": 40}, {"vision": 37, "bridge": 36, "text": 40}),
        ("qwen2-vl", {"vision": 3136, "bridge": 784, "text": 824}, {"vision": 36, "bridge": 9, "text": 49}),
    ],
)
def test_the_plan_counts_the_tokens_of_the_size(name, own, larger, load, plugins):
    backbone = load(name, None)
    kind = type(backbone)
    assert kind.tokens(backbone.config, 40) == own
    assert kind.tokens(config_for_size(kind, backbone.config, 48, plugins=plugins), 40) == larger


@pytest.mark.parametrize("name", [*SIZED, *QWEN])
def test_the_checkpoints_own_size_changes_nothing(name, load):
    unset, own, other = load(name, None), load(name, 32), load(name, 48)
    keys = [
        prefix_key(backbone, backbone.seams[0], dtype=torch.float32, prompt="", base="x") for backbone in (unset, own, other)
    ]
    assert keys[0] == keys[1] != keys[2]
    pixels = unset.pixel_values(images(2))
    assert torch.equal(own.pixel_values(images(2)), pixels)
    with torch.no_grad():
        assert torch.equal(unset.encode(pixels, prompt=""), own.encode(pixels, prompt=""))


def test_a_swins_sizes_fill_its_last_stage(load):
    assert VisionEncoderDecoderBackbone.image_step(load("swin-roberta", None).config) == 8  # patches of 4, two stages


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("blip", 44, r"image\.size=44 is no multiple of 8 pixels, as BlipBackbone needs: try 40 and 48\."),
        ("blip", 5, r"try 8 and 16\."),
        ("qwen2-vl", 40, r"no multiple of 16 pixels, as QwenVlBackbone needs: try 32 and 48\."),
    ],
)
def test_sizes_that_do_not_fit_the_patches_are_refused_with_the_next(name, size, says, load, tiny_folder, plugins):
    backbone, folder = tiny_folder(name)
    with pytest.raises(BackboneError, match=says):
        load(name, size)
    with pytest.raises(BackboneError, match=says):
        load_without_weights(f"{backbone}:{folder}", plugins=plugins, image_size=size)


def test_models_of_one_size_are_refused_and_the_others_named(load, plugins):
    class OneSize(BlipBackbone):
        @classmethod
        def image_step(cls, config):
            return None

    with pytest.raises(
        BackboneError, match=r"^OneSize takes images of one size: leave image\.size out\. .*: blip, .*git, .*vit"
    ):
        config_for_size(OneSize, load("blip", None).config, 48, plugins=plugins)
    with pytest.raises(BackboneError, match="is behind an API, which takes images as they are: leave"):
        prepare_captioner("openai:gpt-4o", Strategy(), plugins=plugins, image_size=64)


@pytest.mark.parametrize(
    ("processor", "size", "crop"),
    [
        (transformers.BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=224), {"shortest_edge": 512}, 448),
        (transformers.DeiTImageProcessorPil(), {"height": 512, "width": 512}, 448),
        (transformers.SiglipImageProcessorPil(), {"height": 448, "width": 448}, None),
    ],
)
def test_processors_that_crop_keep_the_proportion(processor, size, crop):
    resize_to(processor, 448)
    settings = json.loads(processor.to_json_string())
    assert {key: value for key, value in settings["size"].items() if value is not None} == size
    assert crop is None or {settings["crop_size"][side] for side in ("height", "width")} == {crop}
    assert processor(images(1), return_tensors="pt")["pixel_values"].shape == (1, 3, 448, 448)


def test_processors_that_make_no_squares_are_refused():
    with pytest.raises(BackboneError, match="DonutImageProcessorPil does not make squares"):
        resize_to(transformers.DonutImageProcessorPil(), 448)


def _train(folder, data, out, plugins, *overrides, start=None):
    config = medgraft.run_config(
        backbone=None if start else f"blip:{folder}", strategy=None if start else "lora", data=f"roco:{data}", max_images=8,
        start_from=start,
        overrides=["train.max_steps=1", "train.per_device_train_batch_size=4", "train.bf16=false", *overrides],
    )  # fmt: skip
    return execute(config, out, plugins=plugins, checkpoints=False)


@pytest.fixture(scope="module")
def trained(blip_folder, phantoms_folder, tmp_path_factory):
    """A LoRA of a BLIP of 64 pixels, trained on images of 96."""
    from medgraft.plugin import PluginManager

    out = tmp_path_factory.mktemp("sized") / "run"
    return out, _train(blip_folder, phantoms_folder, out, PluginManager(), "image.size=96", "generation.max_new_tokens=8")


@pytest.mark.slow
def test_an_adapter_remembers_its_size(trained, blip_folder, phantoms_folder, plugins, tmp_path):
    out, result = trained
    adapter = locate_adapter(out)
    assert read_record(out / "record.json").config.image.size == 96
    assert json.loads((adapter / "medgraft.json").read_text())["image_size"] == 96
    assert "Images of 96 pixels a side" in (adapter / "README.md").read_text()
    loaded = medgraft.load_adapter(adapter)
    assert loaded.backbone.pixel_values(images(1)).shape == (1, 3, 96, 96)
    found = medgraft.evaluate(f"roco:{phantoms_folder}", adapter=loaded, metrics=("bleu",))
    assert result.evaluation.predictions.items() <= found.predictions.items()
    further = _train(blip_folder, phantoms_folder, tmp_path / "further", plugins, start=str(adapter))
    assert further.record.config.image.size == 96
    merged = merge_adapter(adapter, tmp_path / "merged", plugins=plugins)
    assert merged.changed_captions == 0


@pytest.mark.slow
def test_without_it_manifest_and_run_id_are_as_before(blip_folder, phantoms_folder, plugins, tmp_path):
    result = _train(blip_folder, phantoms_folder, tmp_path / "run", plugins)
    assert "image_size" not in json.loads((locate_adapter(tmp_path / "run") / "medgraft.json").read_text())
    config = result.record.config
    ids = [run_id(c, None, "", "", {}) for c in (config, changed_run(config, overrides=["image.size=96"]))]
    assert ids[0] != ids[1]


@pytest.mark.slow
def test_commands_take_it_for_a_bare_backbone(trained, blip_folder, phantoms_folder, tmp_path, capsys):
    image = str(next(phantoms_folder.rglob("*.jpg"), None) or next(phantoms_folder.rglob("*.png")))
    backbone = ["--backbone", f"blip:{blip_folder}"]
    said = []
    for sizes in ([], ["--set", "image.size=64"], ["--set", "image.size=96"]):
        assert main(["explain", image, *backbone, "--caption", "a nodule", *sizes, "--json"]) == 0
        ((found,),) = json.loads(capsys.readouterr().out).values()
        said.append(len(found["words"][0]["map"]))
    assert said == [4, 4, 6]
    assert main(["caption", image, *backbone, "--set", "image.size=100"]) == 2
    assert "try 96 and 112" in capsys.readouterr().err
    assert main(["caption", image, "--adapter", str(trained[0]), "--set", "image.size=96"]) == 2
    assert "is for a bare backbone" in capsys.readouterr().err
