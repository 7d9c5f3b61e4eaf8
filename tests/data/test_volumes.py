"""Slices of NIfTI volumes are shown as radiologists see them, however they are stored."""

import gzip
import sys

import numpy as np
import pytest

from medgraft.data import open_image
from medgraft.data.images import inspect_images
from medgraft.errors import DataError
from medgraft.types import ImagePart

nibabel = pytest.importorskip("nibabel")

_RAS = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)  # to the right, to the front, to the head


def _write(path, values, affine=None, kind=nibabel.Nifti1Image, **header):
    image = kind(values, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def _levels(image):
    return np.asarray(open_image(image))[..., 0]


def _expected(values):
    """A slice [x, y] of values seen from the feet, from its 0.5th to its 99.5th percentile."""
    low, high = np.percentile(values, [0.5, 99.5])
    return np.clip((values[::-1, ::-1].T - low) / (high - low) * 255, 0, 255)


def _problem(image):
    problem = inspect_images([image])[image].problem
    with pytest.raises(DataError) as error:
        open_image(image)
    assert problem is not None and problem in str(error.value)
    return problem


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "RPI", "PIR", "SAL", "IRP", "ASR"])
@pytest.mark.parametrize("frame", [None, 0, 5])
def test_slices_do_not_depend_on_how_a_volume_is_stored(tmp_path, axes, frame):
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), nibabel.orientations.axcodes2ornt(axes))
    stored = nibabel.Nifti1Image(_RAS, np.eye(4)).as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(stored.affine)) == axes
    path = _write(tmp_path / "a.nii.gz", np.asarray(stored.dataobj), stored.affine)
    levels = _levels(ImagePart(path, frame=frame))
    assert np.abs(levels - _expected(_RAS[:, :, 3 if frame is None else frame])).max() <= 1
    assert levels[0, 0] > levels[0, -1] and levels[0, 0] > levels[-1, 0]  # right at the left, front above


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_forms_of_nifti_by_content(tmp_path, suffix, kind):
    path = _write(tmp_path / f"a.{suffix}", _RAS, kind=kind)
    other = path.rename(tmp_path / "image.png")
    assert np.abs(_levels(other) - _expected(_RAS[:, :, 3])).max() <= 1
    assert inspect_images([other])[other].note == "of a volume the middle axial slice is shown"
    assert inspect_images([other])[other].size == (4, 5)


def test_of_several_volumes_the_first_is_shown_and_told(tmp_path):
    path = _write(tmp_path / "a.nii", np.stack([_RAS, -_RAS], 3))
    assert np.abs(_levels(path) - _expected(_RAS[:, :, 3])).max() <= 1
    for image in (path, ImagePart(path, frame=3)):
        assert inspect_images([image])[image].note.startswith("of several volumes the first is shown")


@pytest.mark.parametrize("shape, expected", [
    ((4, 5, 1), (4, 5)), ((4, 1, 6), (4, 6)), ((1, 5, 6), (5, 6)), ((4, 5), (4, 5)),
])  # fmt: skip
def test_a_single_slice_of_any_plane_is_shown(tmp_path, shape, expected):
    path = _write(tmp_path / "a.nii", np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
    image = open_image(path)
    assert image.size == expected and inspect_images([path])[path].note is None
    assert image.getpixel((0, 0)) == (255, 255, 255)  # right or front, and front or head


def test_windows(tmp_path):
    path = _write(tmp_path / "a.nii", _RAS, cal_min=10, cal_max=90)
    values = _RAS[::-1, ::-1, 3].T
    for window, low, high in (("file", 10, 90), ("full", 3, 117), ("50,80", 10, 90), ("brain", 0, 80)):
        expected = np.clip((values - low) / (high - low) * 255, 0, 255)
        assert np.abs(_levels(ImagePart(path, window=window)) - expected).max() <= 1
    assert _problem(ImagePart(_write(tmp_path / "b.nii", _RAS), window="file")) == "it has no window of its own"


def test_scaled_integers_and_voxels_that_are_not_square(tmp_path):
    image = nibabel.Nifti1Image(_RAS.astype(np.int16), np.diag([1, 3, 1, 1]))
    image.header.set_slope_inter(2, -50)
    nibabel.save(image, tmp_path / "a.nii")
    assert nibabel.load(tmp_path / "a.nii").dataobj.slope == 2
    shown = open_image(ImagePart(tmp_path / "a.nii", window="0,400"))
    assert shown.size == (4, 15)
    assert shown.getpixel((3, 14))[0] == pytest.approx((2 * 3 - 50 + 200) / 400 * 255, abs=1)


def test_colours(tmp_path):
    values = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    values["G"][3, 4, 3] = 200
    assert open_image(_write(tmp_path / "a.nii", values)).getpixel((0, 0)) == (0, 200, 0)


def test_what_is_no_volume_has_its_reason(tmp_path, monkeypatch):
    path = _write(tmp_path / "a.nii", _RAS)
    assert _problem(ImagePart(path, frame=6)) == "it has 6 slices, and slice 6 was asked for (the first is 0)"
    assert _problem(_write(tmp_path / "b.nii", _RAS * 0)) == "it has no contrast"
    assert _problem(_write(tmp_path / "c.nii", _RAS.astype(np.complex64))) == "its NIfTI values are complex numbers"
    assert "its shape is 1 x 1 x 6" in _problem(_write(tmp_path / "d.nii", _RAS[:1, :1]))
    cut = tmp_path / "cut.nii"
    cut.write_bytes(path.read_bytes()[:500])
    assert _problem(cut).startswith("its NIfTI is damaged")
    cut.write_bytes(gzip.compress(path.read_bytes())[:200])
    assert _problem(cut).startswith("its NIfTI is damaged")
    nibabel.save(nibabel.Nifti1Pair(_RAS, np.eye(4)), tmp_path / "e.hdr")
    assert _problem(tmp_path / "e.hdr") == "it is half of a NIfTI pair (.hdr and .img): convert it to one .nii file"
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert _problem(path) == "it is NIfTI, which needs: pip install 'medgraft[nifti]'"
