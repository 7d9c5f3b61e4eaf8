"""Models that are spread over GPUs and the CPU against the same models on one GPU: two GPUs, or one and the CPU's memory.

python -m pytest tests/gpu/test_several_gpus.py
"""

import pytest
import torch
from PIL import Image

import medgraft
from medgraft import hardware
from medgraft.benchmark import execute
from medgraft.config import changed_run, run_config
from medgraft.plugin import PluginManager

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

PLUGINS = PluginManager.from_environment()
SEVERAL = pytest.param("balanced", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"))
OTHER = torch.cuda.device_count() - 1  # the last GPU: another than the one that computes the rest, where there are two
NAMES = ("blip", "blip2-opt", "blip2-t5", "vit-gpt2", "git", "qwen2.5-vl", "vlm-llava", "vlm-gemma3", "vlm-qwen3-vl")


def _outputs(backbone):
    where, prompt = hardware.device(), backbone.default_prompt
    backbone.to_device()
    images = [Image.new("RGB", (64, 64), (40 * i, 90, 200)) for i in range(2)]
    text = backbone.text_batch(["a nodule.", "no effusion is seen."], prompt=prompt, max_tokens=200).to(where)
    with torch.no_grad():
        features = backbone.encode(backbone.pixel_values(images).to(where), prompt=prompt)
        tensors = (features, *backbone.decode(features, text))
        assert {tensor.device for tensor in tensors} == {where}
        return tensors, backbone.generate(features, prompt=prompt)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, {"": OTHER}, SEVERAL])
@pytest.mark.parametrize("name", NAMES)
def test_a_spread_model_computes_what_it_computes_on_one_gpu(name, device_map, tiny_folder):
    kind, folder = tiny_folder(name)
    tensors, captions = _outputs(medgraft.load_backbone(f"{kind}:{folder}", plugins=PLUGINS))
    found, texts = _outputs(medgraft.load_backbone(f"{kind}:{folder}", device_map=device_map, plugins=PLUGINS))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, tensors, strict=True)) and texts == captions


@pytest.mark.parametrize(("strategy", "device_map"), [
    ("lora", '{"text_decoder":"cpu","vision_model":"cpu"}'), ("lora", f'{{"text_decoder":{OTHER},"vision_model":0}}'),
    ("full", f'{{"text_decoder":{OTHER},"vision_model":0}}'), ("qlora", f'{{"text_decoder":{OTHER},"vision_model":0}}'),
])  # fmt: skip
def test_training_is_that_on_one_gpu(strategy, device_map, blip_folder, phantoms_folder, tmp_path):
    one = run_config(
        backbone=f"blip:{blip_folder}", strategy=strategy, data=f"phantoms:{phantoms_folder}", max_images=4,
        overrides=["train.max_steps=3", "train.dtype=fp32", "acceleration.kernels=sdpa", "generation.max_new_tokens=8"],
    )  # fmt: skip
    spread = changed_run(one, overrides=[f"model.device_map={device_map}"])
    losses = [
        execute(config, tmp_path / str(number), plugins=PLUGINS).record.train_loss
        for number, config in enumerate((one, spread))
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64)).save(image)
    adapter = medgraft.load_adapter(tmp_path / "1" / "adapter", device_map="auto" if strategy != "qlora" else None)
    assert medgraft.caption([image], adapter=adapter)
