"""Augmentation: what changes in an image and by how much, and which views a run uses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from medgraft.augmentation_config import AugmentationConfig
from medgraft.backbones.blip import BlipBackbone
from medgraft.benchmark.recording import run_id
from medgraft.config import METRICS, load_suite, run_config
from medgraft.data.augmentation import Views, augmented, flip_warning, recurring_images, recurs, view_digest, without_view
from medgraft.data.collate import CaptionPairs, PixelCache
from medgraft.data.image_reader import ImageReader
from medgraft.data.images import open_image
from medgraft.errors import ConfigError
from medgraft.types import Example, ImagePart, View

ALL = AugmentationConfig(preset="radiology")


def _picture(width=160, height=120):
    """Grey, with a bright bar left of the centre."""
    pixels = np.full((height, width, 3), 60, dtype=np.uint8)
    pixels[20:100, 30:50] = 200
    return Image.fromarray(pixels)


def _views(settings, count=20, image=None):
    return [np.asarray(augmented(image or _picture(), View(settings, (0, 0, i)))).astype(float) for i in range(count)]


def _angle(pixels):
    """Degrees between the bar and the vertical, from the second moments of its pixels."""
    y, x = np.nonzero(pixels[..., 0] > 130)
    covariance = np.cov(np.stack([x, y]))
    return abs(math.degrees(0.5 * math.atan2(2 * covariance[0, 1], covariance[1, 1] - covariance[0, 0])))


def test_rotation_stays_within_its_bound_and_reaches_for_it():
    angles = [_angle(pixels) for pixels in _views(AugmentationConfig(rotation=8))]
    assert max(angles) <= 8.3 and max(angles) > 6 and min(angles) < 2


def test_a_crop_enlarges_within_its_bound_and_goes_to_all_sides():
    areas, places = [], []
    for pixels in _views(AugmentationConfig(crop=0.2)):
        bar = pixels[..., 0] > 130
        areas.append(bar.sum() / (80 * 20))
        places.append(np.nonzero(bar)[1].mean())
    assert min(areas) > 0.97 and 1.3 < max(areas) < 1 / 0.8**2 + 0.05
    assert min(places) < 38 and max(places) > 41  # the bar's middle was 39.5


@pytest.mark.parametrize(("settings", "change"), [({"brightness": 0.1}, 25.5), ({"contrast": 0.2}, 0.2 * (127.5 - 60))])
def test_grey_levels_stay_within_their_bound(settings, change):
    moved = [pixels[0, 0, 0] - 60 for pixels in _views(AugmentationConfig(**settings))]
    assert min(moved) < -0.7 * change and max(moved) > 0.7 * change and np.abs(moved).max() <= change + 0.5


@pytest.mark.parametrize("size", [(256, 192), (1536, 1152)])
def test_noise_is_as_strong_in_large_images_and_leaves_grey_grey(size):
    found = [augmented(Image.new("RGB", size, (100,) * 3), View(AugmentationConfig(noise=0.05), (i,))) for i in range(12)]
    pixels = [np.asarray(image.resize((256, 192), Image.Resampling.BOX)).astype(float) for image in found]
    deviations = [p[..., 0].std() for p in pixels]
    assert 0.05 * 255 * 0.35 < max(deviations) <= 0.05 * 255 and min(deviations) < 3
    assert all((p[..., 0] == p[..., 2]).all() and abs(p.mean() - 100) < 1 for p in pixels)


def test_a_flip_mirrors_half_of_the_images_exactly():
    image = _picture()
    found = _views(AugmentationConfig(horizontal_flip=True), 40, image)
    mirrored = sum((pixels == np.asarray(ImageOps.mirror(image))).all() for pixels in found)
    assert 10 < mirrored < 30
    assert sum((pixels == np.asarray(image)).all() for pixels in found) == 40 - mirrored


def test_the_preset_never_flips():
    right = [pixels[40:80, 110:].max() for pixels in _views(ALL, 40)]
    assert max(right) < 130  # the bar stays on its side


def test_corners_get_the_colour_of_the_border():
    white = Image.new("RGB", (80, 80), (250,) * 3)
    white.paste((0, 0, 0), (20, 20, 60, 60))
    corners = [pixels[0, 0, 0] for pixels in _views(AugmentationConfig(rotation=45), 10, white)]
    assert corners == [250] * 10


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (641, 33)])
def test_every_shape_keeps_its_size(size):
    assert augmented(Image.new("RGB", size, (9, 9, 9)), View(ALL, (1,))).size == size


def test_a_view_depends_on_content_settings_and_seed_alone(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        _picture().save(path)
    first = [np.asarray(open_image(ImagePart(path, view=View(ALL, (3, 1, 4))))) for path in paths]
    assert (first[0] == first[1]).all()
    others = [View(ALL, (3, 1, 5)), View(ALL, (3, 2, 4)), View(ALL, (4, 1, 4)), View(AugmentationConfig(noise=0.1), (3, 1, 4))]
    assert all((np.asarray(open_image(ImagePart(paths[0], view=view))) != first[0]).any() for view in others)
    other = Image.fromarray(255 - np.asarray(_picture()))
    turned = AugmentationConfig(rotation=20)
    angles = [_angle(p) for p in _views(turned, 1) + [255 - p for p in _views(turned, 1, other)]]
    assert abs(angles[0] - angles[1]) > 0.5  # another image turns by another angle


def test_one_change_leaves_the_others_as_they_are():
    alone, both = _views(AugmentationConfig(brightness=0.1), 3), _views(AugmentationConfig(brightness=0.1, rotation=5), 3)
    assert [p[60, 90, 0] for p in alone] == [p[60, 90, 0] for p in both]


def _config(*settings, strategy="lora", seed=0):
    return run_config(backbone="blip", strategy=strategy, data="csv:x.csv", seed=seed, overrides=settings)


EXAMPLES = [
    Example("a", Path("a.png"), ("one", "two"), "train"),
    Example("b", ImagePart(Path("b.nii"), frame=3), ("three",), "train"),
    Example("c", Path("c.png"), ("four",), "validation"),
]


def test_without_augmentation_pairs_and_images_are_untouched():
    config = _config()
    assert Views.of(config) is None and not config.augmentation.on
    pairs = CaptionPairs(EXAMPLES, Views.of(config))
    pairs.begin_epoch(1)
    assert pairs[0] == (EXAMPLES[0], "one") and pairs[0][0] is EXAMPLES[0]
    assert list(recurring_images(config, EXAMPLES)) == [example.image for example in EXAMPLES]


def test_views_are_new_in_every_epoch_for_every_caption_and_seed():
    images = set()
    for seed in (0, 1):
        pairs = CaptionPairs(EXAMPLES[:2], Views.of(_config("augmentation.noise=0.1", seed=seed)))
        for epoch in range(3):
            pairs.begin_epoch(epoch)
            images |= {pairs[i][0].image for i in range(3)}
    assert len(images) == 18 and not any(map(recurs, images))
    assert {without_view(image) for image in images} == {EXAMPLES[0].image, EXAMPLES[1].image}
    assert list(recurring_images(_config("augmentation.noise=0.1"), EXAMPLES)) == [Path("c.png")]  # which is not trained on


def test_workers_that_outlive_an_epoch_see_the_next():
    pairs = CaptionPairs(EXAMPLES[:2], Views.of(_config("augmentation.noise=0.1")))
    loader = DataLoader(pairs, num_workers=1, persistent_workers=True, collate_fn=lambda rows: rows[0][0].image.view.seed)
    for epoch in (0, 1, 7):
        pairs.begin_epoch(epoch)
        assert list(loader) == [(0, epoch, position) for position in range(3)]


def test_augmented_images_are_kept_if_their_views_are_fixed(blip_folder, tmp_path):
    _picture().save(tmp_path / "a.png")
    cache = PixelCache(BlipBackbone.load(str(blip_folder)), 10**9)
    images = [ImagePart(tmp_path / "a.png", view=View(ALL, (number,), fixed=number < 2)) for number in range(4)]
    first = cache.batch(images)
    assert list(cache._stored) == images[:2]
    assert torch.equal(cache.batch(images), first) and len({row.sum().item() for row in first}) == 4


def test_threads_read_views(blip_folder, tmp_path):
    """As for a GPU, by levels."""
    _picture().save(tmp_path / "a.png")
    backbone = BlipBackbone.load(str(blip_folder))
    images = [ImagePart(tmp_path / "a.png", view=View(ALL, (number,))) for number in range(3)]
    reader = ImageReader(backbone, torch.device("cpu"), threads=2)
    ((_, read),) = reader.ahead([images])
    assert read.values.dtype == torch.uint8
    assert torch.equal(reader.pixel_values(read), backbone.pixel_values(list(map(open_image, images))))


def test_fixed_views_take_turns():
    config = _config("augmentation.noise=0.1", "features.views=2")
    pairs = CaptionPairs(EXAMPLES[:2], Views.of(config))
    seen = []
    for epoch in range(4):
        pairs.begin_epoch(epoch)
        seen.append([pairs[i][0].image for i in range(3)])
    assert seen[0] == seen[2] and seen[1] == seen[3]
    assert all(first != second for first, second in zip(*seen[:2], strict=True))
    assert seen[0][0] != seen[0][1]  # two captions of one image
    recurring = list(recurring_images(config, EXAMPLES))
    assert set(recurring) == {*seen[0], *seen[1], Path("c.png")} and len(recurring) == 5 and all(map(recurs, recurring))
    assert recurring == list(recurring_images(_config("augmentation.noise=0.1", "features.views=2", seed=5), EXAMPLES))


def test_the_digest_of_a_view_has_number_and_settings_in_it():
    views = [View(ALL, (0,)), View(ALL, (1,)), View(AugmentationConfig(noise=0.02), (0,))]
    digests = [view_digest("abc", ImagePart(Path("a.png"), view=view)) for view in views]
    digests += [view_digest("abd", ImagePart(Path("a.png"), view=views[0])), view_digest("abc", Path("a.png"))]
    assert len(set(digests)) == 5 and digests[-1] == "abc"
    assert view_digest("abc", ImagePart(Path("elsewhere.png"), view=views[0])) == digests[0]
    explicit = AugmentationConfig(**ALL.changes())
    assert view_digest("abc", ImagePart(Path("a.png"), view=View(explicit, (0,)))) == digests[0]


def test_the_preset_fills_in_what_is_not_set():
    chosen = _config("augmentation.preset=radiology", "augmentation.rotation=3", "augmentation.noise=0").augmentation
    assert chosen.changes() == {"rotation": 3, "crop": 0.1, "contrast": 0.2, "brightness": 0.1}
    assert AugmentationConfig.model_validate(chosen.model_dump()) == chosen
    assert str(AugmentationConfig(noise=0.1)) == "noise 0.1" and str(AugmentationConfig()) == "none"


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("augmentation.rotation=90", "augmentation.rotation: Input should be less than or equal to 45"),
        ("augmentation.crop=-0.1", "augmentation.crop: Input should be greater than or equal to 0"),
        ("augmentation.flip=true", "unknown key 'augmentation.flip'"),
        ("augmentation.preset=strong", "Input should be 'none' or 'radiology'"),
        ("features.views=2", "^Run: features.views needs augmentation; add augmentation.preset=radiology, or leave it out"),
    ],
)
def test_what_is_out_of_bounds_is_refused(setting, problem):
    with pytest.raises(ConfigError, match=problem):
        _config(setting)


def test_a_suite_augments_all_its_runs(tmp_path):
    text = 'name = "s"\nbackbones = ["blip"]\nstrategies = ["lora"]\ndata = "csv:x.csv"\n[augmentation]\npreset = "radiology"\n'
    (tmp_path / "s.toml").write_text(text)
    assert load_suite(tmp_path / "s.toml", ["augmentation.noise=0"]).augmentation.changes()["rotation"] == 10


def test_augmentation_and_its_views_are_in_the_id_of_a_run_and_ids_without_it_are_as_before():
    def ids(*settings):
        return run_id(_config(*settings).model_copy(update={"metrics": METRICS}), None, "d", "b", {})

    assert ids() == ids("augmentation.noise=0", "augmentation.preset=none") == "3a9eb771bcc2a91f"
    augmented = "augmentation.noise=0.1"
    assert len({ids(), ids(augmented), ids("augmentation.noise=0.2"), ids(augmented, "features.views=2")}) == 4


def test_the_warning_of_a_flip_counts_captions_that_name_a_side():
    captions = (
        "Left-sided effusion.",
        "bright lesion, copyright",
        "the RIGHT lung",
        "upright",
        "shift leftwards",
        "a rightful",
    )
    text = flip_warning([Example(str(i), Path("a"), (caption,), "train") for i, caption in enumerate(captions)])
    assert "swaps left and right in half of the training images: 3 of 6 training captions" in text
