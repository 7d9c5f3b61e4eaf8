"""Captioning as it runs for a GPU, images read ahead and a static cache, on a CPU: the captions are the same."""

from contextlib import nullcontext

import pytest
import torch
from PIL import Image

from medgraft import captioning
from medgraft.acceleration.graphed_decoding import StaticGenerator
from medgraft.captioning import caption_images
from medgraft.data import open_image
from medgraft.data.image_reader import ImageReader
from medgraft.errors import DataError
from medgraft.features import open_cached_features
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import get_strategy


@pytest.fixture
def backbone():
    plugins = PluginManager()
    return prepare_model("blip-nano", get_strategy("encoder-frozen", plugins=plugins), plugins=plugins)[0]


@pytest.fixture
def paths(phantoms_folder):
    return sorted(phantoms_folder.rglob("*.jpg"))[:11] or sorted(phantoms_folder.rglob("*.png"))[:11]


@pytest.fixture
def as_for_a_gpu(monkeypatch, backbone):
    class Source(captioning._FeatureSource):
        def __init__(self, backbone, where, cached):
            super().__init__(backbone, where, cached)
            self._reader = ImageReader(backbone, where, threads=3)

    def switch():
        monkeypatch.setattr(captioning, "_FeatureSource", Source)
        monkeypatch.setattr(backbone, "generating", lambda: nullcontext(StaticGenerator(backbone, graph=False)))

    return switch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("storing", [False, True])
def test_captions_are_the_same(dtype, storing, backbone, paths, as_for_a_gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path))
    assert len(paths) == 11
    plain = caption_images(backbone, paths, batch_size=4, dtype=dtype).captions
    assert len(set(plain)) > 1
    as_for_a_gpu()
    cached = open_cached_features(backbone, dtype=dtype, prompt="", max_gb=1)[0] if storing else None
    assert caption_images(backbone, paths, batch_size=4, dtype=dtype, cached=cached).captions == plain
    if cached is not None:
        assert (cached.built, cached.found) == (11, 0)
        turned = [*paths[6:], *paths[:6]]
        assert caption_images(backbone, turned, batch_size=4, dtype=dtype, cached=cached).captions == plain[6:] + plain[:6]
        assert (cached.built, cached.found) == (11, 11)


def test_prompts_of_several_lengths_give_the_same_captions(backbone, paths, as_for_a_gpu):
    prompts = [("a", "a picture of the chest", "what is seen")[number % 3] for number in range(len(paths))]
    plain = caption_images(backbone, paths, prompt=prompts, batch_size=4)
    assert len(set(plain.captions)) > 1
    as_for_a_gpu()
    assert caption_images(backbone, paths, prompt=prompts, batch_size=4) == plain


def test_images_in_memory_have_the_captions_of_their_files(backbone, paths, as_for_a_gpu):
    plain = caption_images(backbone, paths, batch_size=4)
    as_for_a_gpu()
    mixed = [path if number % 3 else open_image(path) for number, path in enumerate(paths)]
    assert caption_images(backbone, mixed, batch_size=4) == plain


def test_an_image_that_is_missing_is_an_error(backbone, paths, as_for_a_gpu, tmp_path):
    as_for_a_gpu()
    with pytest.raises(DataError, match="There is no image"):
        caption_images(backbone, [*paths[:5], tmp_path / "none.png"], batch_size=4)


@pytest.mark.parametrize("storing", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_the_others_have_their_captions(storing, gpu, backbone, paths, as_for_a_gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path))
    plain = caption_images(backbone, paths, batch_size=4).captions
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:200])
    images = [*paths[:5], broken, tmp_path / "none.png", *paths[5:], *[broken] * 4]
    if gpu:
        as_for_a_gpu()
    cached = open_cached_features(backbone, dtype=torch.float32, prompt="", max_gb=1)[0] if storing else None
    batches = list(captioning.captioned_batches(backbone, images, batch_size=4, cached=cached))
    found = [each for batch in batches for each in batch.images]
    assert [each.image for each in found] == images
    assert [each.captions[0] for each in found if each.problem is None] == plain
    problems = [each.problem for each in found if each.problem]
    assert len(problems) == 6 and "broken.png cannot be read" in problems[0] and "There is no image" in problems[1]


def test_an_image_that_a_processor_refuses_is_left_out(backbone, paths, monkeypatch):
    whole = backbone.pixel_values

    def refuses(images):
        if any(image.width == 1 for image in images):
            raise ValueError("the aspect ratio is too large\nof this one")
        return whole(images)

    monkeypatch.setattr(backbone, "pixel_values", refuses)
    (batch,) = captioning.captioned_batches(backbone, [Image.new("RGB", (1, 300)), paths[0]])
    assert [len(each.captions) for each in batch.images] == [0, 1]
    assert batch.images[0].problem.endswith("cannot be prepared for the model: the aspect ratio is too large")


def test_no_images_have_no_captions(backbone, as_for_a_gpu):
    assert caption_images(backbone, []).captions == []
    as_for_a_gpu()
    assert caption_images(backbone, []).captions == []


def test_gradients_are_computed_again_afterwards(backbone, paths, as_for_a_gpu):
    as_for_a_gpu()
    before = {name: parameter.clone() for name, parameter in backbone.model.named_parameters()}
    caption_images(backbone, paths[:4], dtype=torch.bfloat16)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    for name, parameter in backbone.model.named_parameters():
        assert isinstance(parameter, torch.nn.Parameter)
        assert torch.equal(parameter, before[name])
