"""From patches to pixels and back, for any shape of image and every image processor."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medgraft.backbones import get_backbone
from medgraft.backbones.visible_region import visible_rectangle
from medgraft.errors import BackboneError
from medgraft.plugin import PluginManager
from medgraft.saliency import heat, overlay
from medgraft.saliency.geometry import coverage, on_image

SIDE = st.integers(24, 400)
_BACKBONES = ("blip", "vit-gpt2", "git", "qwen2.5-vl")


@pytest.fixture(scope="module")
def backbones(tiny_folder):
    found = {}
    for name in _BACKBONES:
        backbone, folder = tiny_folder(name)
        found[name] = get_backbone(f"{backbone}:{folder}", plugins=PluginManager())[0].load(str(folder))
    return found


def _seen_patches(backbone, image):
    """Brightness of each patch as the model gets it, [rows, columns]."""
    pixels = backbone.pixel_values([image])[0]
    if pixels.dim() == 2:  # Qwen's patches, in blocks of 2 x 2 that become one token
        return pixels.mean(1).view(-1, 4).mean(1).view(2, 2).numpy()
    return pixels.mean(0).unfold(0, 8, 8).unfold(1, 8, 8).mean((-1, -2)).numpy()


@pytest.mark.parametrize("name", _BACKBONES)
@settings(max_examples=40, deadline=None)
@given(width=SIDE, height=SIDE, at=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)))
def test_a_hot_patch_lands_on_what_lit_it(name, backbones, width, height, at):
    """White where the overlay of one patch is to be, black elsewhere: the model's brightest patch is that one."""
    backbone = backbones[name]
    view = backbone.visible_region(width, height)
    rows, columns = (2, 2) if name == "qwen2.5-vl" else (4, 4)
    row, column = int(at[0] * rows), int(at[1] * columns)
    grid = np.zeros((rows, columns))
    grid[row, column] = 1
    lit = on_image(grid, view, (width, height), smooth=False)
    if lit.sum() < 0.3 * (view[2] - view[0]) * (view[3] - view[1]) / (rows * columns):
        return  # most of this patch is padding
    image = Image.fromarray((lit * 255).astype(np.uint8)).convert("RGB")
    seen = _seen_patches(backbone, image)
    assert np.unravel_index(seen.argmax(), seen.shape) == (row, column)
    y, x = np.unravel_index(heat(grid, view, (width, height)).argmax(), (height, width))
    assert lit[y, x] == 1


@given(width=SIDE, height=SIDE)
def test_views_of_processors(width, height):
    assert visible_rectangle({"size": {"height": 384, "width": 384}}, width, height) == pytest.approx((0, 0, width, height))
    assert visible_rectangle({"do_resize": False}, width, height) == pytest.approx((0, 0, width, height))
    cropped = {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    left, top, right, bottom = visible_rectangle(cropped, width, height)
    short = min(width, height)
    assert (right - left, bottom - top) == pytest.approx((short, short))
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((width / 2, height / 2))


def test_overlays_have_the_images_size_and_show_the_map():
    image = Image.new("RGB", (90, 60), "gray")
    grid = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    made = np.asarray(overlay(image, grid, (0, 0, 90, 60))).astype(int)
    assert made.shape == (60, 90, 3)
    assert (made[5, 5] == 128).all()
    assert made[45, 85, 0] > 180 > 100 > made[45, 85, 2]  # yellow
    nothing = overlay(image, np.zeros((2, 3)), (0, 0, 90, 60))
    assert (np.asarray(nothing) == 128).all()


def test_overlays_hide_nothing_where_little_is_and_darken_no_lung():
    levels = np.tile(np.arange(0, 140, 2, dtype=np.uint8), (70, 1))
    image = Image.fromarray(levels)
    made = np.asarray(overlay(image, np.linspace(0, 1, 70)[:, None] * np.ones((1, 2)), (0, 0, 70, 70)).convert("L")).astype(int)
    assert (made >= levels).all() and (made[:15] == levels[:15]).all()
    assert (made[-1] > 100).all() and (np.diff(made[:, 0]) >= 0).all()  # more is lighter


@pytest.mark.parametrize("size", [(500, 1), (1, 500), (2, 300), (1, 1)])
def test_images_a_pixel_wide_have_overlays(size):
    for processor in (
        {"size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    ):
        view = visible_rectangle(processor, *size)
        assert overlay(Image.new("RGB", size), np.ones((4, 4)), view).size == size


def test_sizes_that_do_not_tell_what_is_seen():
    with pytest.raises(BackboneError, match="override `visible_region`"):
        visible_rectangle({"size": {"longest_edge": 980}}, 10, 10)


def test_coverage_by_hand():
    covered = coverage((10, 0, 30, 15), (0, 0, 40, 40), (4, 4))
    np.testing.assert_allclose(covered, [[0, 1, 1, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    padded = coverage((0, 0, 10, 10), (-10, 0, 10, 20), (2, 2))  # the left half is padding
    np.testing.assert_allclose(padded, [[0, 1], [0, 0]])
