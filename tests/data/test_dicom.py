"""DICOM is shown as a viewer shows it, and nothing that names a person gets out of it."""

import sys
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest

import medgraft.file_index as file_index
from medgraft.config import DataConfig
from medgraft.data import load_data, open_image
from medgraft.data.images import image_digests, inspect_images
from medgraft.errors import DataError
from medgraft.types import ImagePart

pydicom = pytest.importorskip("pydicom")
uid = pytest.importorskip("pydicom.uid")

SAMPLES = Path(pydicom.__file__).parent / "data/test_files"  # they come with pydicom
HU = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def _write(path, pixels, *, preamble=True, **fields):
    """A DICOM file of greyscale pixels [H, W] or frames [N, H, W], with a patient's name."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid.generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.InstitutionName = "DOE^JANE", "4711-JANE", "St JANE"
    dataset.Modality = "MR"
    bits = pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    if preamble:
        dataset.save_as(path, enforce_file_format=True)
    else:
        del dataset.file_meta
        dataset.save_as(path, implicit_vr=True, little_endian=True)
    return path


def _levels(path, **settings):
    image = open_image(ImagePart(path, **settings) if settings else path)
    return np.asarray(image)[..., 0]


def _problem(image):
    problem = inspect_images([image])[image].problem
    with pytest.raises(DataError) as error:
        open_image(image)
    assert problem is not None and problem in str(error.value) and "JANE" not in str(error.value)
    return problem


_STORED = np.array([[0, 864, 1064, 1264, 4095]], np.uint16).repeat(4, 0)  # in CT: -1024, -160, 40, 240, 3071


@pytest.mark.parametrize("window, expected", [
    ("auto", [0, 0, 127, 255, 255]), ("soft-tissue", [0, 0, 127, 255, 255]), ("40,400", [0, 0, 127, 255, 255]),
    ("lung", [55, 202, 236, 255, 255]), ("bone", [0, 48, 76, 104, 255]), ("brain", [0, 0, 127, 255, 255]),
    ("mediastinum", [0, 0, 120, 255, 255]), ("full", [0, 53, 66, 78, 255]), ("percentile", [0, 53, 66, 78, 255]),
])  # fmt: skip
def test_windows_of_ct(tmp_path, window, expected):
    assert _levels(_write(tmp_path / "a", _STORED, **HU), window=window)[0].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("fields", [
    {"Modality": "MR"}, {"Modality": "CT"}, HU | {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, HU | {"Modality": "PT"},
    HU | {"RescaleType": "US"},
])  # fmt: skip
def test_all_but_ct_in_hounsfield_units_is_shown_by_percentiles(tmp_path, fields):
    path = _write(tmp_path / "a", np.arange(2000, dtype=np.uint16).reshape(40, 50), **fields)
    expected = np.clip((np.arange(2000) - 9.995) / 1979.01 * 255, 0, 255).reshape(40, 50)
    assert np.abs(_levels(path) - expected).max() <= 1


def test_8_bits_without_a_window_are_shown_as_they_are(tmp_path):
    pixels = np.arange(40, 240, dtype=np.uint8).reshape(10, 20)
    assert (_levels(_write(tmp_path / "a", pixels)) == pixels).all()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("center, width", [(100, 50), (30.5, 7), (128, 256)])
def test_the_window_of_a_file_is_as_in_pydicom(tmp_path, function, center, width):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    fields = {"WindowCenter": [center, 1], "WindowWidth": [width, 2], "VOILUTFunction": function}
    path = _write(tmp_path / "a", pixels, **fields)
    expected = pydicom.pixels.apply_windowing(pixels, pydicom.dcmread(path))
    for window in ("auto", "file"):
        assert np.abs(_levels(path, window=window) - expected).max() <= 1


@pytest.mark.parametrize("center, width", [(9000, 10), (None, None), (5, 0), (5, -3)])
def test_a_window_that_shows_nothing_gives_way(tmp_path, center, width):
    path = _write(tmp_path / "a", _STORED, WindowCenter=center, WindowWidth=width)
    assert _levels(path)[0].tolist() == pytest.approx([0, 53, 66, 78, 255], abs=1)
    assert _problem(ImagePart(path, window="file")) in ("it has no contrast in its own window", "it has no window of its own")


@pytest.mark.parametrize("bits, entries, kind", [
    (8, [0, 64, 128, 255], "u2"), (8, [0, 64, 128, 255], "u1"), (12, [0, 1024, 2048, 4095], "u2"),
    (16, [0, 1024, 2048, 4095], "u2"), (16, [0, 16384, 32768, 65535], "u2"),
])  # fmt: skip
def test_voi_tables(tmp_path, bits, entries, kind):
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 100, bits]
    table.add_new("LUTData", "OW", np.array(entries, kind).tobytes())
    pixels = np.array([[0, 100, 101, 102, 103, 60000]], np.uint16)
    path = _write(tmp_path / "a", pixels, VOILUTSequence=[table], WindowCenter=5, WindowWidth=5)
    assert _levels(path)[0].tolist() == pytest.approx([0, 0, 64, 128, 255, 255], abs=1)


def test_modality_tables(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [3, 0, 16]
    table.ModalityLUTType = "US"
    table.add_new("LUTData", "OW", np.array([500, 100, 300], "u2").tobytes())
    path = _write(tmp_path / "a", np.array([[0, 1, 2]], np.uint16), ModalityLUTSequence=[table])
    assert _levels(path, window="full")[0].tolist() == pytest.approx([255, 0, 127], abs=1)


def test_monochrome1_is_inverted_and_padding_is_black(tmp_path):
    pixels = np.array([[0, 50, 100, 200, 200]], np.int16).repeat(50, 0)
    pixels[:, -1] = -2000
    path = _write(tmp_path / "a", pixels, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-2000)
    assert _levels(path)[0].tolist() == pytest.approx([255, 191, 127, 0, 0], abs=1)
    path = _write(tmp_path / "a", pixels, PixelPaddingValue=-2000)
    assert _levels(path)[0].tolist() == pytest.approx([0, 63, 127, 255, 0], abs=1)
    path = _write(tmp_path / "a", pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=0)
    assert _levels(path)[0].tolist() == pytest.approx([0, 0, 85, 255, 0], abs=86)
    assert _levels(path)[0, 0] == 0


def test_frames(tmp_path):
    frames = np.stack([np.arange(20, dtype=np.uint8).reshape(4, 5) * (n + 1) for n in range(5)])
    path = _write(tmp_path / "a", frames)
    assert (_levels(path) == frames[2]).all() and (_levels(path, frame=4) == frames[4]).all()
    assert inspect_images([path])[path].note == "of several frames the middle one is shown"
    assert inspect_images([ImagePart(path, frame=2)])[ImagePart(path, frame=2)].note is None
    assert _problem(ImagePart(path, frame=5)) == "it has 5 frames, and frame 5 was asked for (the first is 0)"


def test_enhanced_dicom_has_a_window_for_each_frame(tmp_path):
    def item(**fields):
        made = pydicom.Dataset()
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    shared = item(PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-1000)])
    each = [item(FrameVOILUTSequence=[item(WindowCenter=100 * n + 0.5, WindowWidth=101)]) for n in range(3)]
    frames = np.repeat(np.array([[[500, 525, 550, 575, 600]]], np.uint16), 3, 0)  # 0 to 200 after rescaling
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": each}
    path = _write(tmp_path / "a", frames, **groups)
    assert _levels(path)[0].tolist() == pytest.approx([0, 0, 127, 255, 255], abs=2)
    assert _levels(path, frame=0)[0].tolist() == pytest.approx([127, 255, 255, 255, 255], abs=2)


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert open_image(_write(tmp_path / "a", pixels, PixelSpacing=[2, 1])).size == (20, 20)
    assert open_image(_write(tmp_path / "a", pixels, PixelAspectRatio=[1, 2])).size == (40, 10)
    assert open_image(_write(tmp_path / "a", pixels, PixelSpacing=[1e-6, 1])).size == (20, 10)


def test_dicom_without_preamble_or_suffix_is_known_by_its_content(tmp_path):
    pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert (_levels(_write(tmp_path / "a.jpg", pixels)) == pixels).all()
    assert (_levels(_write(tmp_path / "b", pixels, preamble=False)) == pixels).all()


@pytest.mark.parametrize("name", [
    "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless",
    "MR_small_expb",
])  # fmt: skip
def test_lossless_compression_and_other_encodings_change_nothing(name):
    plain = open_image(SAMPLES / "MR_small.dcm")
    assert open_image(SAMPLES / f"{name}.dcm").tobytes() == plain.tobytes() and plain.size == (64, 64)


_BANDS = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255), (0, 0, 0), (64, 64, 64)]


@pytest.mark.parametrize("name", [
    "SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+n1", "SC_rgb_dcmtk_+eb+cy+np", "SC_rgb_dcmtk_+eb+cy+s2",
    "SC_rgb_dcmtk_+eb+cy+s4",
    "SC_rgb_gdcm_KY", "SC_rgb_jpeg_dcmtk", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_lossy_gdcm", "SC_rgb_rle", "SC_rgb_rle_16bit",
    "SC_rgb_rle_32bit", "SC_ybr_full_422_uncompressed", "SC_rgb_jls_lossy_line", "SC_rgb_jls_lossy_sample",
])  # fmt: skip
def test_colours(name):
    image = open_image(SAMPLES / f"{name}.dcm")
    bands = [image.getpixel((50, 5 + 10 * number)) for number in range(8)]
    assert np.abs(np.subtract(bands, _BANDS)).max() <= 6


def test_palette_colours():
    image = np.asarray(open_image(SAMPLES / "examples_palette.dcm"))
    blue = image[..., 2].astype(int) - image[..., 0]
    assert image.shape == (350, 800, 3) and blue[5:30].mean() > 50  # the blue bar at the top
    assert abs(blue[200:]).mean() < 5


@pytest.mark.slow
def test_every_sample_gives_an_image_or_one_line():
    paths = [path for path in sorted(SAMPLES.rglob("*")) if path.is_file() and path.suffix not in (".py", ".txt")]
    for path, found in inspect_images(paths).items():
        if found.problem is None:
            assert open_image(path).size == found.size
        else:
            assert "\n" not in found.problem and len(found.problem) < 300


@pytest.mark.parametrize("name, reason", [
    ("rtplan", "it is DICOM without an image, of modality RTPLAN"), ("test-SR", "it is DICOM without an image, of modality SR"),
    ("MR_truncated", None), ("JPEG-lossy", None),
])  # fmt: skip
def test_samples_without_an_image(name, reason):
    problem = _problem(SAMPLES / f"{name}.dcm")
    assert problem == reason if reason else "DICOM" in problem


def test_lossy_jpeg_of_12_bits_names_the_decoder_that_it_needs():
    if "pylibjpeg-libjpeg" in {found.metadata["Name"] for found in distributions()}:
        pytest.skip("the decoder is installed")
    assert _problem(SAMPLES / "JPGExtended.dcm").endswith("which needs: pip install pylibjpeg-libjpeg (under the GPL)")


def test_ct_windows_are_for_ct(tmp_path):
    path = _write(tmp_path / "a", _STORED)
    assert _problem(ImagePart(path, window="lung")) == "window 'lung' is for CT, and its modality is MR"
    flat = _write(tmp_path / "b", np.full((9, 9), 7, np.uint16))
    assert _problem(flat) == "it has no contrast"


def test_without_pydicom_the_reason_says_what_to_install(tmp_path, monkeypatch):
    path = _write(tmp_path / "a", _STORED)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert _problem(path) == "it is DICOM, which needs: pip install 'medgraft[dicom]'"


def test_nothing_that_names_a_person_gets_out(tmp_path, plugins, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "_SETTLED_SECONDS", 0.0)
    folder = tmp_path / "data"
    folder.mkdir()
    good, cut, flat = (_write(folder / f"{name}.dcm", _STORED, **HU) for name in ("good", "cut", "flat"))
    assert b"DOE^JANE" in good.read_bytes()
    cut.write_bytes(cut.read_bytes()[:-20])
    _write(flat, np.zeros((4, 4), np.uint16))
    (folder / "t.csv").write_text("image,caption\n" + "".join(f"{name}.dcm,normal chest\n" for name in ("good", "cut", "flat")))
    data = load_data(DataConfig(name="csv", path=str(folder / "t.csv")), plugins=plugins)
    image_digests([example.image for example in data.examples])
    assert len(data.examples) == 1 and len(data.report.corrupt) == 2 and open_image(good).info == {}
    written = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert written and not any(b"JANE" in content for content in written)
    assert "JANE" not in repr(data)
