"""Images as levels: with the table they are the processor's own pixel values, bit for bit, or there are none."""

import numpy as np
import pytest
import torch
from PIL import Image

from medgraft.backbones.blip import BlipBackbone
from medgraft.data import open_image
from medgraft.data.collate import PixelCache
from medgraft.data.levels import pixel_levels, pixel_values
from medgraft.data.roco import Roco
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy

RESIZED_ALONE = {"blip": True, "blip2-opt": True, "vit-gpt2": True, "instructblip-vicuna": True, "git": False}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    shapes = [(90, 60, 3), (33, 200, 3), (64, 64, 3), (500, 300, 3), (31, 17, 3), (32, 32, 3)]
    noise = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    return [Image.fromarray(pixels // weaker) for pixels in noise for weaker in (1, 9)]


@pytest.fixture(scope="module")
def blip(blip_folder):
    return BlipBackbone.load(str(blip_folder))


def _check(backbone, images):
    split = pixel_levels(backbone)
    levels = split.levels(images)
    assert levels.dtype == torch.uint8 and levels.shape[3] == 3
    assert torch.equal(pixel_values(levels, split.table), backbone.pixel_values(images))
    return split


@pytest.mark.parametrize("name", RESIZED_ALONE)
def test_levels_looked_up_are_the_processors_own_pixel_values(name, tiny_folder, images):
    kind, folder = tiny_folder(name)
    backbone = load_model(f"{kind}:{folder}", Strategy(), plugins=PluginManager())
    assert (_check(backbone, images).size is not None) == RESIZED_ALONE[name]


@pytest.mark.parametrize(
    ("settings", "resized_alone"),
    [
        ({"do_normalize": False}, True),
        ({"resample": 2}, True),
        ({"image_mean": [0.1, 0.2, 0.3], "rescale_factor": 1 / 100}, True),
        ({"do_center_crop": True, "crop_size": {"height": 40, "width": 50}}, False),
    ],
)
def test_the_processors_settings_count(settings, resized_alone, blip_folder, images):
    backbone = BlipBackbone.load(str(blip_folder))
    for name, value in settings.items():
        setattr(backbone.image_processor, name, value)
    assert (_check(backbone, images).size is not None) == resized_alone


def test_a_cache_of_levels_is_one_of_pixel_values(blip, phantoms_folder):
    paths = [example.image for example in Roco().read(phantoms_folder)][:3]
    split = pixel_levels(blip)
    cache = PixelCache(blip, 10**9, split)
    for _ in range(2):
        levels = cache.batch(paths)
        assert torch.equal(pixel_values(levels, split.table), blip.pixel_values([open_image(path) for path in paths]))


@pytest.mark.parametrize("how", ["mean", "stretch", "blur"])
def test_a_processor_that_does_more_has_no_levels(how, blip_folder):
    backbone = BlipBackbone.load(str(blip_folder))
    ordinary = backbone.image_processor

    def does_more(images, **options):
        values = ordinary(images, **options)["pixel_values"]
        if how == "mean":
            return {"pixel_values": values * values.float().mean()}
        if options.get("do_rescale") is False:
            return {"pixel_values": values}
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
        return {"pixel_values": (values - low) / (high - low) if how == "stretch" else (values + values.roll(1, 3)) / 2}

    backbone.image_processor = does_more
    assert pixel_levels(backbone) is None


def test_own_steps_of_a_backbone_are_left_to_it(tiny_folder):
    kind, folder = tiny_folder("qwen2-vl")
    assert pixel_levels(load_model(f"{kind}:{folder}", Strategy(), plugins=PluginManager())) is None
