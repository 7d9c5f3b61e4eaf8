"""Models that are spread over devices compute what they compute on one; what cannot work is refused in one line.

Here there is the CPU and the disk; several GPUs are in tests/gpu/test_several_gpus.py.
"""

import gc
import json

import pytest
import torch
from PIL import Image

import medgraft
from medgraft.benchmark import execute
from medgraft.cli.main import main
from medgraft.config import ModelConfig, changed_run, run_config
from medgraft.errors import BackboneError, ConfigError, StrategyError
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare
from medgraft.saliency import MapOptions
from medgraft.strategies import get_strategy

PLUGINS = PluginManager.from_environment()
ON_DISK = {"": "disk"}


def _outputs(backbone):
    prompt, images = backbone.default_prompt, [Image.new("RGB", (64, 64), (40 * i, 90, 200)) for i in range(2)]
    text = backbone.text_batch(["a nodule.", "no effusion is seen."], prompt=prompt, max_tokens=200)
    with torch.no_grad():
        features = backbone.encode(backbone.pixel_values(images), prompt=prompt)
        return (features, *backbone.decode(features, text)), backbone.generate(features, prompt=prompt)


@pytest.mark.parametrize("name", ["blip", "blip2-opt", "qwen2.5-vl", "vlm-llava"])
def test_a_model_computes_the_same_from_disk(name, tiny_folder, tmp_path):
    kind, folder = tiny_folder(name)
    tensors, captions = _outputs(medgraft.load_backbone(f"{kind}:{folder}", plugins=PLUGINS))
    config = ModelConfig(device_map="auto", max_memory={"cpu": "100KB"}, offload_folder=str(tmp_path))
    for device_map in (ON_DISK, config):
        spread = medgraft.load_backbone(f"{kind}:{folder}", device_map=device_map, plugins=PLUGINS)
        assert sum(parameter.is_meta for parameter in spread.model.parameters()) > 10
        found, texts = _outputs(spread)
        assert all(torch.equal(a, b) for a, b in zip(found, tensors, strict=True)) and texts == captions
    assert any(tmp_path.iterdir())
    del spread
    gc.collect()
    assert not any(tmp_path.iterdir())  # the weights on disk go with the model


def _image(folder):
    Image.new("RGB", (64, 64), (40, 90, 200)).save(folder / "image.png")
    return folder / "image.png"


def _config(blip_folder, phantoms_folder, strategy, *overrides):
    settings = ["train.max_steps=3", "train.dtype=fp32", "generation.max_new_tokens=8", "acceleration.kernels=sdpa"]
    return run_config(
        backbone=f"blip:{blip_folder}", strategy=strategy, data=f"phantoms:{phantoms_folder}", max_images=4,
        overrides=[*settings, "train.per_device_train_batch_size=2", "saliency.maps=0", *overrides],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "lora-decoder"])  # with no stored features, and with those of a frozen part
def test_adapters_train_on_a_base_on_disk(strategy, blip_folder, phantoms_folder, tmp_path):
    plain = _config(blip_folder, phantoms_folder, strategy)
    spread = changed_run(plain, overrides=['model.device_map={"text_decoder":"disk","vision_model":"disk"}'])
    one, other = (execute(config, tmp_path / name, plugins=PLUGINS).record for name, config in (("a", plain), ("b", spread)))
    assert other.train_loss == one.train_loss and other.metrics == one.metrics and other.run_id == one.run_id
    assert other.acceleration == ("sdpa",) and other.config.model.device_map == spread.model.device_map
    image = _image(tmp_path)
    captions = {
        medgraft.caption([image], adapter=medgraft.load_adapter(tmp_path / name / "adapter", device_map=device_map))[0]
        for name in "ab"
        for device_map in (None, ON_DISK)
    }
    assert len(captions) == 1


def test_kernels_that_read_the_weights_of_other_modules_are_left_out(blip_folder, phantoms_folder):
    config = _config(blip_folder, phantoms_folder, "lora", "acceleration.kernels=auto")
    spread = changed_run(config, overrides=["model.device_map=auto"])
    installed = [prepare(c, plugins=PLUGINS, strategy=get_strategy("lora", plugins=PLUGINS)).acceleration.installed
                 for c in (config, spread)]  # fmt: skip
    assert {"lora", "packed_decoder"} <= set(installed[0]) and installed[1] == ("sdpa",)


@pytest.mark.parametrize(
    ("strategy", "device_map", "error", "text"),
    [
        ("full", ON_DISK, StrategyError, "trains .* in place, which model.device_map puts on disk"),
        ("dora", ON_DISK, StrategyError, "reads the weights of .*, which model.device_map puts on disk"),
        ("qlora", ON_DISK, BackboneError, "quantised, on disk"),
        ("lora", {"text_decodr": "disk", "": "cpu"}, ConfigError, "no module 'text_decodr'. Did you mean 'text_decoder'"),
        ("lora", {"text_decoder": "cpu"}, ConfigError, "says nothing of 'vision_model"),
        ("lora", {"": 7}, ConfigError, "no device 7 here. Known: .*cpu, disk"),
        (
            "lora", {"": "cpu", "vision_model.encoder.layers.0.mlp": "disk", "vision_model.encoder.layers.0.self_attn": "cpu"},
            ConfigError, "splits 'vision_model.encoder.layers.0'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(strategy, device_map, error, text, blip_folder, phantoms_folder):
    config = _config(blip_folder, phantoms_folder, strategy, f"model.device_map={json.dumps(device_map)}")
    with pytest.raises(error, match=text) as raised:
        prepare(config, plugins=PLUGINS, strategy=get_strategy(strategy, plugins=PLUGINS))
    assert "\n" not in str(raised.value)


def test_parts_trained_in_place_may_stay_beside_others_on_disk(blip_folder, phantoms_folder, tmp_path):
    device_map = '{"vision_model":"disk","text_decoder":"cpu"}'
    config = _config(blip_folder, phantoms_folder, "encoder-frozen", f"model.device_map={device_map}")
    record = execute(config, tmp_path, plugins=PLUGINS, evaluate=False).record
    assert record.train_loss[-1] < record.train_loss[0]


def test_settings_without_sense_are_refused():
    for values, text in (
        (["model.max_memory={\"cpu\":\"1GB\"}"], "add device_map=auto"),
        (["model.device_map={}"], "device_map is empty"),
        (["model.device_map=everywhere"], "device_map"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            run_config(backbone="blip", strategy="lora", data="phantoms", overrides=values)
    with pytest.raises(BackboneError, match="behind an API"):
        medgraft.load_backbone("openai:gpt-4o", device_map="auto", plugins=PLUGINS)


def test_the_commands_take_a_device_map(blip_folder, tmp_path, capsys):
    image = str(_image(tmp_path))
    base = ["--backbone", f"blip:{blip_folder}", "--dtype", "fp32", "--max-new-tokens", "8", "--json"]
    printed = []
    for options in ([], ["--device-map", "auto", "--set", 'model.max_memory={"cpu":"1KB"}'], ["--device-map", '{"":"disk"}']):
        assert main(["caption", image, *base, *options]) == 0
        printed.append(json.loads(capsys.readouterr().out)["captions"])
    assert printed[0] == printed[1] == printed[2]
    spread = medgraft.load_backbone(f"blip:{blip_folder}", device_map=ON_DISK)
    for method in ("attention", "gradient"):
        found, plain = (
            medgraft.explain(image, backbone=b, caption="a nodule.", maps=MapOptions(method))
            for b in (spread, medgraft.load_backbone(f"blip:{blip_folder}"))
        )
        assert [word.grid.tolist() for word in found.maps.words] == [word.grid.tolist() for word in plain.maps.words]
