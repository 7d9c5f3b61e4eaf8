"""Images that occur in several splits are found, however they were saved, and images that are only alike are not."""

import io
import time

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

import medgraft.file_index as file_index
from medgraft.config import data_config
from medgraft.data import load_data, loading, near_duplicates
from medgraft.data.leaks import find_leaks
from medgraft.errors import DataError
from medgraft.types import Example, Leak


def _picture(seed, mask=False):
    """A smooth random picture of 240 x 200 pixels, behind a disc if `mask`."""
    rng = np.random.default_rng(seed)
    coarse, fine = (gaussian_filter(rng.normal(size=(200, 240)), sigma) for sigma in (24, 4))
    if mask:
        rows, columns = np.ogrid[-100:100, -120:120]
        disc = rows**2 + columns**2 < 95**2
        return Image.fromarray(np.where(disc, 150 + 20 * (fine / fine.std()), 5).clip(0, 255).astype(np.uint8))
    return Image.fromarray((110 + 40 * coarse / coarse.std() + 15 * fine / fine.std()).clip(0, 255).astype(np.uint8))


def _jpeg(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def _turned(image):
    """Stored on its side, with the tag that turns it back."""
    image = image.transpose(Image.Transpose.ROTATE_90)
    image.getexif()[0x0112] = 6
    return image


COPIES = {
    "png": lambda image: image,
    "rgb": lambda image: image.convert("RGB"),
    "jpeg 70": lambda image: _jpeg(image, 70),
    "half": lambda image: image.resize((120, 100)),
    "cropped": lambda image: image.crop((2, 2, 238, 198)),
    "cropped at one corner": lambda image: image.crop((2, 2, 240, 200)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "16 bits": lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 100),
    "all at once": lambda image: _jpeg(
        ImageEnhance.Brightness(image.crop((2, 2, 238, 198)).resize((118, 98))).enhance(1.1), 70
    ),
}
OTHERS = {
    "another": lambda image: _picture(99),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "cropped by half": lambda image: image.crop((0, 0, 120, 200)),
}


def _example(path, split, group=None):
    return Example(path.stem, path, ("a caption",), split, group)


def _pair(folder, first, second, suffix="png"):
    first.save(folder / "a.png")
    second.save(folder / f"b.{suffix}")
    return find_leaks([_example(folder / "a.png", "train"), _example(folder / f"b.{suffix}", "test")])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("change", COPIES)
def test_copies_are_near_duplicates(tmp_path, change, suffix):
    found = _pair(tmp_path, _picture(1), COPIES[change](_picture(1)), "tif" if change == "png" else suffix)
    assert found.found == (Leak("near_duplicate", "test", "train", 1, (("b", "a"),)),)
    assert found.leaking == {0}


@pytest.mark.parametrize("change", OTHERS)
def test_different_images_are_not(tmp_path, change):
    assert _pair(tmp_path, _picture(1), OTHERS[change](_picture(1))).found == ()


def test_images_behind_one_mask_are_not(tmp_path):
    assert _pair(tmp_path, _picture(1, mask=True), _picture(2, mask=True)).found == ()
    assert _pair(tmp_path, _picture(1, mask=True), _jpeg(_picture(1, mask=True), 70)).found


def test_images_without_contrast_are_not(tmp_path):
    assert _pair(tmp_path, Image.new("L", (64, 64), 10), Image.new("L", (64, 64), 20)).found == ()


def test_only_pairs_of_different_splits_count(tmp_path):
    for name in "abcdef":
        _picture(1 if name in "abc" else ord(name)).save(tmp_path / f"{name}.png")
    splits = {"a": "train", "b": "train", "c": "test", "d": "train", "e": "validation", "f": "test"}
    examples = [
        _example(tmp_path / f"{name}.png", split, {"d": "p", "e": "p"}.get(name, name)) for name, split in splits.items()
    ]
    found = find_leaks(examples)
    assert found.found == (
        Leak("group", "validation", "train", 1, (("e", "d"),)),
        Leak("byte_equal", "test", "train", 1, (("c", "a"),)),
    )
    assert {examples[place].id for place in found.leaking} == {"a", "b", "d"}
    assert find_leaks([example for example in examples if example.split == "train"]).found == ()


def test_every_image_of_a_study_is_compared(tmp_path):
    for number, name in enumerate("abcd"):
        _picture(number).save(tmp_path / f"{name}.png")
    a, b, c, d = (tmp_path / f"{name}.png" for name in "abcd")
    Image.open(b).save(tmp_path / "copy.png")
    examples = [
        Example("1", a, ("x",), "train", more_images=(b,)), Example("2", c, ("x",), "train"),
        Example("3", d, ("x",), "test", more_images=(c, tmp_path / "copy.png")),
    ]  # fmt: skip
    found = {leak.kind: (leak.images, leak.examples) for leak in find_leaks(examples).found}
    assert found == {"byte_equal": (2, (("3#2", "2"), ("3#3", "1#2")))}
    assert find_leaks(examples).leaking == {0, 1}


def test_blank_groups_are_no_group(tmp_path):
    for name in "ab":
        _picture(ord(name)).save(tmp_path / f"{name}.png")
    assert find_leaks([_example(tmp_path / "a.png", "train", ""), _example(tmp_path / "b.png", "test", "")]).found == ()


def test_one_copy_among_many_is_found_and_each_of_many_copies(tmp_path):
    examples = []
    for number in range(24):
        _picture(number).save(tmp_path / f"{number}.png")
        examples.append(_example(tmp_path / f"{number}.png", "train" if number < 20 else "test"))
    for number in range(12):  # more than the nearest neighbours that are looked at
        _picture(22).resize((230 - number, 190)).save(tmp_path / f"copy-{number}.png")
        examples.append(_example(tmp_path / f"copy-{number}.png", "train"))
    found = find_leaks(examples)
    assert [(leak.kind, leak.images) for leak in found.found] == [("near_duplicate", 1)]
    assert {examples[place].id for place in found.leaking} == {f"copy-{number}" for number in range(12)}


def test_neighbours_are_found_without_comparing_all_pairs():
    rng = np.random.default_rng(0)
    thumbnails = gaussian_filter(rng.normal(size=(12_000, 20, 20)), (0, 2, 2))
    thumbnails = (120 + 40 * thumbnails / thumbnails.std(axis=(1, 2), keepdims=True)).clip(0, 255).astype(np.uint8)
    thumbnails[11_000:11_100] = thumbnails[:100] // 2
    start = time.perf_counter()
    pairs = near_duplicates.candidates(np.arange(10_000, 12_000), np.arange(10_000), thumbnails)
    assert {(11_000 + row, row) for row in range(100)} <= set(map(tuple, pairs.tolist()))
    assert time.perf_counter() - start < 10


def test_a_second_look_reads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "_SETTLED_SECONDS", 0.0)
    first = _pair(tmp_path, _picture(1), _jpeg(_picture(1), 70))
    monkeypatch.setattr(near_duplicates, "_read", None)
    examples = [_example(tmp_path / "a.png", "train"), _example(tmp_path / "b.png", "test")]
    assert find_leaks(examples) == first
    monkeypatch.undo()
    monkeypatch.setenv("MEDGRAFT_CACHE", str(tmp_path / "cache"))
    _picture(2).save(tmp_path / "b.png")
    assert find_leaks(examples).found == ()


def test_a_turned_photo_is_the_same(tmp_path):
    turned = _turned(_picture(1))
    _picture(1).save(tmp_path / "a.png")
    turned.save(tmp_path / "b.jpg", exif=turned.getexif())
    found = find_leaks([_example(tmp_path / "a.png", "train"), _example(tmp_path / "b.jpg", "test")])
    assert [leak.kind for leak in found.found] == ["near_duplicate"]


@pytest.fixture
def table(tmp_path):
    """Six images; a validation image has its copy in train, a test image in validation, and a patient is in train and test."""
    loading._warn_once.cache_clear()
    pictures = {"a": 1, "b": 2, "c": 3, "d": 1, "e": 4, "f": 4}
    for name, seed in pictures.items():
        _picture(seed).save(tmp_path / f"{name}.{'bmp' if name == 'd' else 'png'}")
    rows = [
        "a.png,one,train,p1", "b.png,two,train,p2", "c.png,three,train,p3", "d.bmp,four,validation,p4",
        "e.png,five,validation,p5", "f.png,six,test,p2",
    ]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["image,caption,split,patient", *rows]))
    return tmp_path / "t.csv"


def _load(table, plugins, *overrides, **splits):
    given = ["data.split=split", "data.group=patient", *overrides]
    return load_data(data_config(f"csv:{table}", given, None), plugins=plugins, **splits)


FOUND = [("near_duplicate", "validation", "train"), ("group", "test", "train"), ("byte_equal", "test", "validation")]


def test_leaks_are_reported_once_in_one_line(table, plugins, logged):
    with logged() as lines:
        data = _load(table, plugins)
        _load(table, plugins)
    assert len(data.examples) == 6 and data.report.leaking == 0
    assert [(leak.kind, leak.split, leak.other) for leak in data.report.leaks] == FOUND
    (line,) = [line for line in lines if "the splits overlap" in line]
    assert "1 image of validation with a near-duplicate in train (such as 'd.bmp' and 'a.png')" in line
    assert "1 image of test with an image of their group in train (such as 'f.png' and 'b.png')" in line
    assert "1 image of test with a byte-equal image in validation (such as 'f.png' and 'e.png')" in line
    assert "data.on_leak=drop" in line and "p2" not in line and "\n" not in line


def test_leaks_can_be_refused(table, plugins):
    with pytest.raises(DataError, match=r"the splits overlap: 1 image of validation .* or set data.on_leak=drop"):
        _load(table, plugins, "data.on_leak=error")


def test_leaks_can_be_dropped_and_never_from_test(table, plugins, logged):
    with logged() as lines:
        data = _load(table, plugins, "data.on_leak=drop")
    assert [example.id for example in data.examples] == ["c.png", "d.bmp", "f.png"]
    assert data.report.leaking == 3 and len(data.report.leaks) == 3 and lines == []
    assert "3 leaking images dropped" in str(data.report)
    assert data.report.sentences()[0] == "Left out: 3 of which a later split has the like."


def test_without_leaks_nothing_is_dropped_and_one_split_has_none(table, plugins):
    assert _load(table, plugins, "data.on_leak=error", splits=("test",)).report.leaks is None
    rows = [line for line in table.read_text().splitlines() if line[0] not in "def"]
    table.write_text("\n".join([*rows, "e.png,five,test,p5"]))
    assert _load(table, plugins, "data.on_leak=error").report.leaks == ()


def test_dropping_all_of_train_is_an_error(table, plugins):
    rows = [line for line in table.read_text().splitlines() if line[0] not in "bc"]
    table.write_text("\n".join(rows))
    with pytest.raises(DataError, match="nothing is left to train on"):
        _load(table, plugins, "data.on_leak=drop")


def test_phantoms_are_alike_by_design(tmp_path, plugins):
    report = load_data(data_config("phantoms", ["data.count=60"], None), plugins=plugins).report
    assert report.leaks == ()


@pytest.mark.slow
def test_real_images(shared_data, tmp_path, plugins):
    for name in ("roco-cc", "cxr-notes"):
        data = load_data(data_config(f"roco:{shared_data / name}", [], None), plugins=plugins)
        assert data.report.leaks == ()
    copies = []
    for example in data.split("test")[:20]:
        with Image.open(example.image) as image:
            grey = image.convert("L")
            grey.resize((grey.width // 2, grey.height // 2)).save(tmp_path / f"{example.id}.jpg", quality=70)
        copies.append(_example(tmp_path / f"{example.id}.jpg", "train"))
    (leak,) = find_leaks([*data.split("test"), *copies]).found
    assert (leak.kind, leak.images) == ("near_duplicate", len(copies)) and leak.examples[0][0] == leak.examples[0][1]
