"""Images are opened as people see them, and each that cannot be has its reason."""

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from medgraft.config import DataConfig
from medgraft.data import load_data, open_image
from medgraft.data.images import image_digests, inspect_images
from medgraft.errors import ConfigError, DataError
from medgraft.types import ImagePart

ORIENTATION = 0x0112


def _save(folder, pixels, suffix="png", **options):
    path = folder / f"image.{suffix}"
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def _problem(path):
    """The reason in a check, which is that of opening the image."""
    problem = inspect_images([path])[path].problem
    assert problem is not None
    with pytest.raises(DataError) as error:
        open_image(path)
    assert problem in str(error.value) and str(path) in str(error.value)
    return problem


def _scene():
    """Red at the top left, blue at the top right, black below; 48 wide, 32 high."""
    image = Image.new("RGB", (48, 32))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 23, 15), "red")
    draw.rectangle((24, 0, 47, 15), "blue")
    return image


# what a camera stores that was held so that the orientation has to be applied
_STORED = {
    1: lambda pixels: pixels, 2: lambda pixels: pixels[:, ::-1], 3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1], 5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels), 7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(_STORED[orientation](np.asarray(_scene())))
    path = _save(tmp_path, stored, suffix, exif=exif, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    opened = open_image(path)
    difference = np.abs(np.asarray(opened, int) - np.asarray(_scene(), int))
    assert opened.size == inspect_images([path])[path].size == (48, 32)
    assert np.median(difference) <= 2 and difference.mean() < 12


def test_greyscale_of_16_bits_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30)
    opened = open_image(_save(tmp_path, pixels, exif=exif))
    assert opened.size == (20, 30) and opened.getpixel((19, 0)) == (0, 0, 0) and opened.getpixel((0, 29)) == (255, 255, 255)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_spoil_an_image(tmp_path):
    path = _save(tmp_path, _scene(), "jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x01" * 40)
    assert inspect_images([path])[path].problem is None and open_image(path).size == (48, 32)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA", "LA"])
def test_images_of_8_bits_decode_as_pillow_decodes_them(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = _save(tmp_path, Image.fromarray(pixels).convert(mode), "tif" if mode == "CMYK" else "png")
    opened = open_image(path)
    assert opened.mode == "RGB" and opened.tobytes() == Image.open(path).convert("RGB").tobytes()
    assert inspect_images([path])[path].note is None


_RAMP = np.linspace(0, 1, 2000).reshape(40, 50)


@pytest.mark.parametrize("suffix, dtype, top", [
    ("png", np.uint16, 65535), ("png", np.uint16, 4095), ("tif", np.uint16, 65535), ("tif", ">u2", 4095),
    ("tif", np.int32, 2**30),
    ("tif", np.float32, 1), ("tif", np.float32, 1e30), ("tif", np.float32, 1e-6),
])  # fmt: skip
def test_more_than_8_bits_are_shown_from_their_first_to_their_last_percentile(tmp_path, suffix, dtype, top):
    pixels = (_RAMP * top).astype(dtype)
    levels = np.asarray(open_image(_save(tmp_path, pixels, suffix)))[..., 0]
    expected = (_RAMP - 0.005) / 0.99 * 255
    assert np.abs(levels - np.clip(expected, 0, 255)).max() <= 1.5
    pixels[3, 4] = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1e35  # one hot pixel
    assert np.abs(np.asarray(open_image(_save(tmp_path, pixels, suffix)))[..., 0].mean() - levels.mean()) < 1


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_are_ignored(tmp_path, odd):
    pixels = _RAMP.astype(np.float32)
    plain = np.asarray(open_image(_save(tmp_path, pixels, "tif"))).astype(int)
    pixels[20, 25] = odd
    levels = np.asarray(open_image(_save(tmp_path, pixels, "tif"))).astype(int)
    assert levels[20, 25, 0] == (255 if odd == np.inf else 0)
    levels[20, 25] = plain[20, 25]
    assert np.abs(levels - plain).max() <= 1


def test_a_mask_of_few_pixels_is_seen(tmp_path):
    pixels = np.zeros((40, 50), np.uint16)
    pixels[0, 0] = 3
    assert open_image(_save(tmp_path, pixels)).getextrema() == ((0, 255),) * 3


@pytest.mark.parametrize(
    "window, black, white", [("full", 0, 1999), ("500,200", 400, 600), ("brain", 0, 80), ("500, 200", 400, 600)]
)
def test_windows_of_16_bits(tmp_path, window, black, white):
    path = _save(tmp_path, np.arange(2000, dtype=np.uint16).reshape(40, 50))
    levels = np.asarray(open_image(ImagePart(path, window=window)))[..., 0].ravel()
    expected = np.clip((np.arange(2000) - black) / (white - black) * 255, 0, 255)
    assert np.abs(levels - expected).max() <= 1


@pytest.mark.parametrize("pixels", [
    np.full((8, 8), 700, np.uint16), np.zeros((8, 8), np.float32), np.full((8, 8), np.nan, np.float32),
])  # fmt: skip
def test_more_than_8_bits_without_contrast_are_a_problem(tmp_path, pixels):
    assert "it has no contrast" in _problem(_save(tmp_path, pixels, "tif"))


def test_a_window_that_shows_nothing_is_a_problem(tmp_path):
    path = _save(tmp_path, np.arange(600, dtype=np.uint16).reshape(20, 30))
    assert _problem(ImagePart(path, window="9000,10")) == "it has no contrast in window '9000,10'"
    assert _problem(ImagePart(path, window="file")) == "it has no window of its own"


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_8_bits_of_one_colour_are_used_and_counted(tmp_path, mode, suffix):
    image = Image.new(mode, (70, 50), 9 if mode in "LP" else None)
    path = _save(tmp_path, image.convert("RGB") if suffix == "jpg" else image, suffix)
    assert inspect_images([path])[path].note == "of one colour throughout" and open_image(path).size == (70, 50)
    fine = Image.fromarray((np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8))  # an eighth of its size is grey
    path = _save(tmp_path, fine, suffix)
    assert inspect_images([path])[path].note is None


def _clear(mode):
    """White, clear on its right half."""
    image = Image.new("RGBA", (20, 10), "white")
    image.paste((255, 255, 255, 0), (10, 0, 20, 10))
    return image.convert(mode)


@pytest.mark.parametrize("image, options", [
    (_clear("RGBA"), {}), (_clear("LA"), {}), (_clear("P"), {}),
    (Image.fromarray(np.repeat([[200] * 10 + [7] * 10], 10, 0).astype(np.uint8)), {"transparency": 7}),
])  # fmt: skip
def test_transparency_is_over_black(tmp_path, image, options):
    path = _save(tmp_path, image, **options)
    opened = open_image(path)
    assert inspect_images([path])[path].note == "transparent parts are shown as black"
    assert min(opened.getpixel((2, 2))) >= 200 and opened.getpixel((15, 5)) == (0, 0, 0)


def test_half_clear_is_half_black_and_wholly_clear_means_nothing(tmp_path):
    half = np.full((4, 4, 4), [200, 100, 0, 128], np.uint8)
    assert open_image(_save(tmp_path, half)).getpixel((0, 0)) == (100, 50, 0)
    half[..., 3] = 0
    assert open_image(_save(tmp_path, half)).getpixel((0, 0)) == (200, 100, 0)


def test_a_black_drawing_on_nothing_is_counted_as_black(tmp_path):
    drawing = np.zeros((9, 9, 4), np.uint8)
    drawing[4, :, 3] = 255
    path = _save(tmp_path, drawing)
    assert inspect_images([path])[path].note == "of one colour throughout"


def test_what_a_file_says_beside_the_pixels_is_left_behind(tmp_path):
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x010E] = "DOE^JANE"
    text.add_text("Patient", "DOE^JANE")
    for path in (_save(tmp_path, _scene(), "jpg", comment="DOE^JANE", exif=exif), _save(tmp_path, _scene(), pnginfo=text)):
        kept = io.BytesIO()
        open_image(path).resize((9, 9)).save(kept, path.suffix[1:].replace("jpg", "jpeg"))
        assert open_image(path).info == {} and b"JANE" not in kept.getvalue()


def _png_with_16_bits_a_colour(path, pixels):
    """A PNG that Pillow does not write; `pixels` are [H, W, 3]."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def test_16_bits_a_colour_are_shown_or_refused_where_they_would_be_dark(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 600).reshape(20, 30, 1), 3, 2)
    path = _png_with_16_bits_a_colour(tmp_path / "full.png", ramp)
    assert (np.asarray(open_image(path)) == ramp.astype(int) >> 8).all() and inspect_images([path])[path].problem is None
    assert "its colours have 16 bits but use the lower ones only" in _problem(
        _png_with_16_bits_a_colour(tmp_path / "12.png", ramp // 16)
    )


def test_frames_and_pages(tmp_path):
    pages = [Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30) + number) for number in range(3)]
    path = _save(tmp_path, pages[0], "tif", save_all=True, append_images=pages[1:])
    assert inspect_images([path])[path].note == "of several frames or pages the first is shown"
    for number in range(3):
        part = ImagePart(path, frame=number)
        assert (
            open_image(part).tobytes() == pages[number].convert("RGB").tobytes() and inspect_images([part])[part].note is None
        )
    assert open_image(path).tobytes() == pages[0].convert("RGB").tobytes()
    assert _problem(ImagePart(path, frame=3)) == "it has no frame 3 (the first is 0)"
    single = _save(tmp_path, pages[0])
    assert open_image(ImagePart(single, frame=0)).size == (30, 20)
    assert _problem(ImagePart(single, frame=1)) == "it has no frame 1 (the first is 0)"


@pytest.mark.parametrize("content, reason", [
    (b"", "it is empty"),
    (b"Not found: the image was moved.\n", "it is text, not an image"),
    ("ein Röntgenbild " * 100, "it is text, not an image"),
    (b"\n<!DOCTYPE html><html><body>404</body></html>", "it is a web page, perhaps of a failed download"),
    (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "it is an SVG drawing: convert it to PNG"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "it is HEIC: convert it to JPEG or PNG"),
    (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(40), "it is a video: convert it to JPEG or PNG"),
    (b"%PDF-1.7\n", "it is a PDF: save its pages as PNG"),
    (b"PK\x03\x04" + bytes(40), "it is a zip archive: unpack it"),
    (gzip.compress(b"anything", mtime=0), "it is a gzip archive: unpack it"),
    (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer: fetch the image with `git lfs pull`"),
    (b"NRRD0004\n", "it is an NRRD volume: convert it to NIfTI"),
    (b"\x01\x02\xff\xfe nothing known", "its format is unknown"),
])  # fmt: skip
def test_a_file_that_is_no_image_has_its_reason(tmp_path, content, reason):
    pytest.importorskip("nibabel")
    path = tmp_path / "a.jpg"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert _problem(path) == reason


def test_a_truncated_image_a_folder_and_nothing(tmp_path):
    path = _save(tmp_path, np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8), "jpg")
    path.write_bytes(path.read_bytes()[:-200])
    assert _problem(path).startswith("its content is damaged or not supported: image file is truncated")
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    assert inspect_images([folder])[folder].problem == "it is a folder"
    for path, message in ((folder, "is a folder, not an image"), (tmp_path / "b.jpg", "There is no image")):
        with pytest.raises(DataError, match=message):
            open_image(path)


def test_pillows_limit_of_pixels_applies(tmp_path, monkeypatch):
    path = _save(tmp_path, np.zeros((40, 50), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert "exceeds limit of 1000 pixels" in _problem(path)


def test_a_container_that_no_reader_knows_has_its_reason(tmp_path):
    part = ImagePart(_save(tmp_path, _scene()), member="0")
    assert "@OFFSET+SIZE" in inspect_images([part])[part].problem
    with pytest.raises(DataError, match=r"image\.png \(0\): the member"):
        open_image(part)


def test_settings_change_a_digest_and_a_plain_path_keeps_it(tmp_path):
    path = _save(tmp_path, np.arange(600, dtype=np.uint16).reshape(20, 30))
    parts = [path, ImagePart(path, frame=0), ImagePart(path, window="full"), ImagePart(path, frame=0, window="full")]
    digests = image_digests([*parts, ImagePart(path)])
    assert len(set(digests.values())) == 4 and digests[ImagePart(path)] == digests[path]
    assert {part: file.sha256 for part, file in inspect_images(parts).items()} == {part: digests[part] for part in parts}


@pytest.fixture
def table(tmp_path):
    """A table of five images: 16 bits, three pages, of one colour, text, and missing."""
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(tmp_path / "deep.png")
    pages = [Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30) + n) for n in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    Image.new("L", (9, 9)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("Not found")
    names = ["deep.png", "pages.tif", "black.png", "text.png", "absent.png"]
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{name},normal chest\n" for name in names))
    return tmp_path / "t.csv"


def test_a_data_set_tells_reasons_and_choices(table, plugins):
    data = load_data(DataConfig(name="csv", path=str(table)), plugins=plugins)
    assert {Path(str(e.image)).name for e in data.examples} == {"deep.png", "pages.tif", "black.png"}
    assert data.report.corrupt == (f"{table.parent / 'text.png'}: it is text, not an image",)
    assert data.report.missing == (str(table.parent / "absent.png"),)
    told = " ".join(data.report.assumptions)
    assert f"1 images are read with a choice: of one colour throughout. Such as {table.parent / 'black.png'}." in told
    assert "of several frames or pages the first is shown" in told


def test_window_and_frame_reach_every_image(table, plugins):
    config = DataConfig(name="csv", path=str(table), frame=0, window="300,100")
    data = load_data(config, plugins=plugins)
    assert {e.image for e in data.examples} == {
        ImagePart(table.parent / name, frame=0, window="300,100") for name in ("deep.png", "pages.tif", "black.png")
    }
    with pytest.raises(
        ConfigError, match=r"There is no window 'lungs'\. Did you mean 'lung'\? Known: auto, file, .*CENTER,WIDTH"
    ):
        load_data(config.model_copy(update={"window": "lungs"}), plugins=plugins)
    for window in ("40,0", "40,-3", "40", "nan,4", "40,400,1"):
        with pytest.raises(ConfigError, match="There is no window"):
            load_data(config.model_copy(update={"window": window}), plugins=plugins)
