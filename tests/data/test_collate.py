"""Batches: every caption of an image, and pixels that are the same from the cache as anew."""

import multiprocessing
import pickle

import torch

from medgraft.backbones.blip import BlipBackbone
from medgraft.data import open_image
from medgraft.data.collate import CaptionPairs, PixelCache
from medgraft.data.roco import Roco
from medgraft.training.collator import Collator
from medgraft.types import Example


def test_pixels_from_the_cache_are_those_made_anew(blip_folder, phantoms_folder):
    backbone = BlipBackbone.load(str(blip_folder))
    paths = sorted((phantoms_folder / "train/radiology/images").iterdir())[:5]
    expected = backbone.pixel_values([open_image(path) for path in paths])
    size = expected[0].nbytes
    cache = PixelCache(backbone, limit_bytes=3 * size + 10)
    for _ in range(2):
        assert torch.equal(cache.batch(paths), expected)
    assert torch.equal(cache.batch([paths[4], paths[0], paths[4]]), expected[[4, 0, 4]])
    assert len(cache._stored) == 3


def test_an_image_with_two_captions_is_two_pairs(blip_folder, phantoms_folder):
    backbone = BlipBackbone.load(str(blip_folder))
    image = next((phantoms_folder / "train/radiology/images").iterdir())
    pairs = CaptionPairs([Example("a", image, ("one lung.", "", "two lungs and more."), "train")])
    assert len(pairs) == 2
    batch = Collator(backbone, PixelCache(backbone, 10**9), prompt="", max_tokens=32)([pairs[0], pairs[1]])
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).tolist() == [5, 7]


def test_forked_processes_fill_and_read_one_cache(blip_folder, phantoms_folder):
    backbone = BlipBackbone.load(str(blip_folder))
    paths = [example.image for example in Roco().read(phantoms_folder)][:4]
    expected = backbone.pixel_values([open_image(path) for path in paths])
    cache = PixelCache(backbone, limit_bytes=3 * expected[0].nbytes)
    cache.share(paths)  # of which the last has no place
    child = multiprocessing.get_context("fork").Process(target=cache.batch, args=(paths,))
    child.start()
    child.join()
    assert child.exitcode == 0
    found = [cache._find(path) for path in paths]
    assert all(torch.equal(image, value) for image, value in zip(found[:3], expected[:3], strict=True))
    assert found[3] is None
    assert torch.equal(cache.batch(paths), expected)
    assert torch.equal(pickle.loads(pickle.dumps(cache)).batch(paths), expected)  # started anew, without the memory
