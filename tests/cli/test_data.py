"""`medgraft data inspect` as a user types it, and its page in a browser."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from medgraft.backbones import RemoteCaptioner
from medgraft.cli.main import main
from medgraft.config import run_config
from medgraft.data import open_image
from medgraft.data.images import image_kind
from medgraft.inspection import inspect_data
from medgraft.report import data_page
from medgraft.types import ImagePart

NAME = "DOE^JANE"


def _noise(path, seed, *, dtype=np.uint8, shape=(60, 80)):
    Image.fromarray(np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)).save(path)


@pytest.fixture
def inspect(tmp_path, blip_folder, capsys):
    """`inspect(data, *words)` gives the exit code, the JSON and the page."""

    def run(data, *words):
        page = tmp_path / "page.html"
        words = ["data", "inspect", data, "--backbone", f"blip:{blip_folder}", "--json", "--out", str(page), *words]
        code = main(words)
        return code, json.loads(capsys.readouterr().out), page.read_text(encoding="utf-8")

    return run


@pytest.fixture
def table(tmp_path):
    """`table(rows)` writes a CSV with the rows and an image for each name in it that is not there."""

    def write(rows, header="image,caption,split,patient"):
        for number, row in enumerate(rows):
            name = row.partition(",")[0]
            if not (tmp_path / name).exists() and "gone" not in name:
                _noise(tmp_path / name, number)
        (tmp_path / "t.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
        return f"csv:{tmp_path / 't.csv'}"

    return write


GOOD = [
    "a.png,a nodule,train,p",
    "b.png,a nodule,train,p",
    "c.png,no acute findings in the chest,validation,q",
    "d.png,a mass,test,r",
]


def _problems(found):
    return {problem["kind"]: problem for problem in found["problems"]}


def test_good_data_are_accepted_and_counted(inspect, table):
    code, found, page = inspect(table(GOOD), "--set", "data.group=patient")
    assert (code, found["refusal"], found["problems"]) == (0, None, [])
    assert found["splits"] == {
        "train": {"images": 2, "captions": 2, "groups": 1},
        "validation": {"images": 1, "captions": 1, "groups": 1},
        "test": {"images": 1, "captions": 1, "groups": 1},
    }
    images, captions = found["images"], found["captions"]
    assert (images["images"], images["sample"], images["formats"], images["modes"]) == (4, 4, {"PNG": 4}, {"L": 4})
    assert images["width"]["0"] == images["width"]["100"] == 80 and images["frequent"] == {"80 x 60": 4}
    assert images["longest_side"]["up to 128"] == 4
    assert (captions["captions"], captions["distinct"], captions["repeated"]) == (4, 3, 2)
    assert captions["words"] == {"0": 2, "50": 2, "90": 6, "99": 6, "100": 6}
    assert captions["frequent"] == {"a nodule": 2}
    assert captions["longest"][0] == {
        "id": "c.png",
        "split": "validation",
        "words": 6,
        "caption": "no acute findings in the chest",
    }
    assert [caption["caption"] for caption in captions["shortest"][:2]] == ["a nodule", "a mass"]
    assert (found["text"]["captions"], found["text"]["percentiles"]["100"]) == (2, 5)  # [DEC] a nod ##ule [SEP]
    assert page.count('<img src="data:image/jpeg') == 4


BAD = ["a.png,Chest, PA, normal,train,p", "b.png,a mass,nowhere,p", "b.png,a mass,train,p", "b.png,a mass,test,p"]


def test_all_bad_rows_are_listed_and_the_rest_is_shown(inspect, table):
    code, found, page = inspect(table([*BAD, *GOOD[2:]]))
    assert code == 1 and "row 2: 6 cells where the header has 4" in found["refusal"]
    bad = _problems(found)["bad_rows"]
    assert (bad["count"], bad["refused"]) == (3, True) and "data.skip_bad_rows=true" in bad["run"]
    assert [int(re.search(r"row (\d+)", item)[1]) for item in bad["items"]] == [2, 3, 5]
    assert all(item.split(": ")[-1].replace("'", "&#39;") in page for item in bad["items"])
    assert found["splits"]["train"]["images"] == 1 and found["captions"]["captions"] == 3
    code, found, _ = inspect(table([*BAD, *GOOD[2:]]), "--set", "data.skip_bad_rows=true")
    assert (code, found["refusal"], _problems(found)["bad_rows"]["refused"]) == (0, None, False)


@pytest.mark.parametrize(
    ("rows", "words", "kinds", "refusal"),
    [
        (["a.png,Chest, PA,train,p"], [], {"bad_rows", "refused"}, "5 cells where the header has 4"),
        (["gone.png,a mass,train,p"], [], {"missing"}, "has no usable images: 1 missing"),
        (["a.png,,train,p"], [], {"uncaptioned"}, "none has a caption"),
        (GOOD[2:], [], {"no_training"}, "No images to train on"),
        (GOOD[:3], [], {"no_evaluation"}, None),
        ([*GOOD, "gone.png,a mass,train,p", "e.png,,train,p"], [], {"missing", "uncaptioned"}, None),
        (GOOD, ["--set", "data.caption=words"], set(), "has no 'words'"),
        (GOOD, ["--set", "train.max_text_tokens=4"], {"truncated"}, None),
        (GOOD, ["--set", "generation.max_new_tokens=1"], {"long_references"}, None),
        ([*GOOD, "e.png,右肺上叶结节,train,p"], [], {"unknown_tokens"}, None),
    ],
)  # fmt: skip
def test_what_a_run_does_about_each_problem(inspect, table, rows, words, kinds, refusal):
    code, found, page = inspect(table(rows), *words)
    assert kinds <= _problems(found).keys() and (code == 1) == (refusal is not None)
    assert (refusal or "") in (found["refusal"] or "")
    assert kinds or not found["problems"]
    for problem in found["problems"]:
        assert (problem["run"].startswith("A run ") and problem["kind"] != "refused") or problem["refused"]
        assert problem["what"].replace("'", "&#39;") in page


def test_captions_are_shown_where_no_image_can_be_used(inspect, table):
    code, found, page = inspect(table(["gone.png,a mass,train,p", "gone2.png,a nodule,train,p"]))
    assert code == 1 and found["images"] is None and found["captions"]["captions"] == 2
    assert found["text"]["captions"] == 2 and "<img" not in page


@pytest.mark.parametrize(("on_leak", "code", "shown"), [("warn", 0, 3), ("error", 1, 3), ("drop", 0, 0)])
def test_leaks_are_shown_side_by_side(inspect, table, tmp_path, on_leak, code, shown):
    rows = [
        *GOOD,
        "copy.png,a copy,test,s",
        "near.png,the same,test,t",
        "other.png,of the patient,test,p",
        "e.png,more,train,x",
    ]
    smooth = Image.fromarray(np.random.default_rng(7).integers(0, 255, (6, 8), dtype=np.uint8)).resize((240, 180))
    smooth.save(tmp_path / "b.png")
    smooth.resize((120, 90)).save(tmp_path / "near.png")
    _noise(tmp_path / "a.png", 0)
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    done, found, page = inspect(table(rows), "--set", "data.group=patient", "--set", f"data.on_leak={on_leak}")
    problems = _problems(found)
    assert done == code and {"byte_equal", "near_duplicate", "group"} <= problems.keys()
    assert problems["byte_equal"]["items"] == ["copy.png and a.png"] and problems["near_duplicate"]["count"] == 1
    assert problems["group"]["refused"] == (on_leak == "error")
    assert page.count("<figure>\n    <div>") == shown
    assert found["splits"]["train"]["images"] == (1 if on_leak == "drop" else 3)


def test_the_contact_sheet_has_what_the_model_sees(table, tmp_path, blip_folder, plugins):
    values = np.linspace(0, 4000, 60 * 80).reshape(60, 80).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    data = table(GOOD)
    for window in ("0,4000", "0,100"):
        config = run_config(backbone=f"blip:{blip_folder}", strategy="full", data=data, overrides=[f"data.window={window}"])
        inspected = inspect_data(config, plugins=plugins)
        first = inspected.sheet[0]
        assert (first.example.id, first.size, first.mode) == ("a.png", (80, 60), "I;16")
        expected = open_image(ImagePart(tmp_path / "a.png", window=window)).resize((64, 64), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(first.picture), np.asarray(expected)) and not inspected.as_read
    assert len({image.example.split for image in inspected.sheet}) == 3


def test_the_contact_sheet_has_all_splits_of_large_data(blip_folder, phantoms_folder, plugins):
    config = run_config(backbone=f"blip:{blip_folder}", strategy="full", data=f"roco:{phantoms_folder}")
    inspected = inspect_data(config, plugins=plugins)
    images = {split: counts.images for split, counts in inspected.inspection.splits.items()}
    shown = [image.example.split for image in inspected.sheet]
    assert {split: shown.count(split) for split in images} == {"train": 48 - sum(images.values()) + images["train"], **{
        split: images[split] for split in ("validation", "test")
    }}  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "make", "expected"),
    [
        ("png", lambda path: Image.new("RGBA", (4, 4)).save(path), ("PNG", "RGBA")),
        ("jpg", lambda path: Image.new("L", (4, 4)).save(path), ("JPEG", "L")),
        ("tif", lambda path: Image.new("F", (4, 4)).save(path), ("TIFF", "F")),
        ("dcm", lambda path: _write_dicom(path), ("DICOM", "MONOCHROME2 16-bit")),
        ("nii.gz", lambda path: _write_nifti(path), ("NIfTI", "volume")),
    ],
)
def test_formats_and_modes(tmp_path, suffix, make, expected):
    make(tmp_path / f"a.{suffix}")
    assert image_kind(tmp_path / f"a.{suffix}") == expected
    assert image_kind(ImagePart(tmp_path / f"a.{suffix}", window="auto")) == expected


def _write_dicom(path):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.PatientName, dataset.Modality = NAME, "MR"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 60, 80, 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = np.random.default_rng(3).integers(0, 4000, (60, 80), dtype=np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _write_nifti(path):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), path)


def test_medical_formats_are_shown_without_a_name(inspect, table, tmp_path):
    _write_dicom(tmp_path / "a.png")  # found by its content
    _write_nifti(tmp_path / "d.nii.gz")
    code, found, page = inspect(table([*GOOD[:3], "d.nii.gz,a volume,test,r"]))
    assert code == 0 and found["images"]["formats"] == {"PNG": 2, "DICOM": 1, "NIfTI": 1}
    assert NAME not in page + json.dumps(found) and NAME.encode() in (tmp_path / "a.png").read_bytes()


def test_without_options_there_are_a_summary_and_a_page(table, blip_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["data", "inspect", table([*GOOD, *BAD]).replace(str(tmp_path), "."), "--backbone", f"blip:{blip_folder}"]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert max(map(len, printed.replace(str(blip_folder), "").splitlines())) <= 80
    assert re.search(r"^train +2 +3 +1$", printed, re.M) and "3 rows cannot be read. A run refuses them." in printed
    assert "A run that trains refuses these data: t.csv, row 6" in printed
    page = re.search(r"^Page: (.*)$", printed, re.M)[1]
    assert page == "medgraft-results/data-csv-t.html" and (tmp_path / page).is_file()


@pytest.mark.parametrize(
    ("data", "page"), [("phantoms", "phantoms"), ("roco:{}/x.y/my data/", "roco-x.y-my-data"), ("roco:.", "roco")]
)
def test_the_page_is_named_after_the_data(data, page, blip_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.y/my data").mkdir(parents=True)
    count = ["--set", "data.count=12"] if data == "phantoms" else []
    assert main(["data", "inspect", data.format(tmp_path), "--backbone", f"blip:{blip_folder}", *count]) == (not count)
    assert (tmp_path / f"medgraft-results/data-{page}.html").is_file(), capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["csv:/nowhere.csv"], "There is no /nowhere.csv"),
        (["csvv:t.csv"], "Unknown dataset 'csvv'. Did you mean 'csv'"),
        (["DATA", "--backbone", "blipp"], "Unknown backbone 'blipp'"),
        (["DATA", "--set", "data.pictures=x"], "unknown key"),
        (["DATA", "--set", "data.root=/nowhere"], "data.root is /nowhere, which is not a folder"),
        (["DATA", "--max-images", "0"], "max_images"),
    ],
)
def test_mistakes_of_usage_are_one_line(words, message, table, blip_folder, capsys):
    data = table(GOOD)
    words = [data if word == "DATA" else word for word in words]
    if "--backbone" not in words:
        words += ["--backbone", f"blip:{blip_folder}"]
    assert main(["data", "inspect", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_models_behind_an_api_get_images_as_they_are_read(table, plugins):
    classes = {spec.name: plugins.get("backbone", spec.name) for spec, _ in plugins.specs("backbone")}
    remote = next((name for name, found in classes.items() if issubclass(found, RemoteCaptioner)), None)
    if remote is None:
        pytest.skip("no plugin with a model behind an API is installed")
    inspected = inspect_data(run_config(backbone=f"{remote}:x", strategy="full", data=table(GOOD)), plugins=plugins)
    assert inspected.as_read and inspected.inspection.text is None
    assert [image.picture.size for image in inspected.sheet] == [(80, 60)] * 4
    page = data_page(inspected)
    assert "behind an API" in page and "as they are read" in page


_LOOK = """
  const images = [...document.images];
  images.forEach((image) => { image.loading = "eager"; });
  said.push("images " + images.length + " " + images.filter((image) => image.naturalWidth > 0).length);
  said.push("wide " + (document.documentElement.scrollWidth <= document.documentElement.clientWidth));
  said.push("open " + document.querySelectorAll("details[open] li").length);
  said.push("links " + [...document.querySelectorAll("nav a")].every((a) => document.querySelector(a.getAttribute("href"))));
  said.push("bars " + document.querySelectorAll(".bar span").length);
"""


def test_the_page_in_a_browser(inspect, table, browser):
    rows = [*GOOD, *BAD, f"e.png,<script>said.push('error: run')</script>{'long' * 200},train,x"]
    _, _, page = inspect(table(rows))
    assert not re.search(r"""(src|href)=["'](?!#|data:)|url\(|@import""", page)
    said = browser(page, _LOOK)
    assert said["images"] == "5 5" and said["wide"] == said["links"] == "true"
    assert said["open"] == "3" and int(said["bars"]) >= 3
