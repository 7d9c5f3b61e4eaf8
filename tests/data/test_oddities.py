"""What looks wrong in data that can be read is reported: names that nearly are there, captions that look odd."""

import unicodedata

import pytest
from PIL import Image

from medgraft.config import data_config
from medgraft.data import load_data
from medgraft.errors import DataError, MedgraftError

NFC, NFD = (unicodedata.normalize(form, "Größe.png") for form in ("NFC", "NFD"))


def _load(plugins, folder, rows, *names):
    for name in names:
        Image.new("L", (8, 8)).save(folder / name)
    (folder / "t.csv").write_text("image,caption\n" + rows, encoding="utf-8")
    return load_data(data_config(f"csv:{folder / 't.csv'}", [], None), plugins=plugins)


@pytest.mark.parametrize(
    ("written", "there", "message"),
    [
        ("a.PNG", "a.png", "a.PNG is 'a.png' there"), ("a", "a.png", "a is 'a.png' there"),
        ("1.2.840.7", "1.2.840.7.png", "1.2.840.7 is '1.2.840.7.png' there"), ("a.png", "a.jpg", "a.png is 'a.jpg' there"),
        ("a%20b.png", "a b.png", "a%20b.png is 'a b.png' there"), (NFC, NFD, "another Unicode form"),
        (NFD, NFC, "another Unicode form"),
    ],
)  # fmt: skip
def test_missing_images_that_are_there_under_another_spelling(tmp_path, plugins, written, there, message):
    with pytest.raises(DataError, match=rf"1 missing, .*{message}.* Correct the names in the data\.$"):
        _load(plugins, tmp_path, f"{written},x\n", there)
    report = _load(plugins, tmp_path, f"{written},x\nother.png,y\n", "other.png").report
    assert len(report.missing) == 1
    assert any("1 missing images are there under another spelling" in sentence for sentence in report.assumptions)


def test_missing_images_that_are_nowhere(tmp_path, plugins):
    with pytest.raises(DataError, match=r"If they lie elsewhere, name their folder: --set data.root=FOLDER"):
        _load(plugins, tmp_path, "a.png,x\n")


@pytest.mark.parametrize(
    ("caption", "what"),
    [
        ("<p>Chest</p>", "HTML in them"), ("5 &lt; 6&nbsp;mm", "HTML in them"),
        ("Ã–dem", "letters of a wrong encoding in them"),
        ("a \ufffd", "letters of a wrong encoding in them"), ("1", "nothing but numbers"), ("0.5", "nothing but numbers"),
        ("5 < 6 mm & T1 > 3", None), ("Größe, Ã", None), ("T1", None), ("胸部", None),
    ],
)  # fmt: skip
def test_odd_captions_are_reported_and_not_changed(tmp_path, plugins, caption, what):
    data = _load(plugins, tmp_path, f'a.png,"{caption}"\n', "a.png")
    assert data.examples[0].captions == (caption,)
    notes = [sentence for sentence in data.report.assumptions if "they are read as they stand" in sentence]
    assert [sentence.startswith(f"1 captions have {what}, such as ") for sentence in notes] == [True] * bool(what)


def test_marks_alone_are_no_caption(tmp_path, plugins):
    assert _load(plugins, tmp_path, "a.png,-\nb.png,?\nc.png,x\n", "a.png", "b.png", "c.png").report.uncaptioned == 2


@pytest.mark.parametrize(
    ("name", "reader"), [("t.csv", "csv"), ("t.jsonl", "jsonl"), ("t.parquet", "hf"), (".", "imagefolder")]
)
def test_a_path_without_a_reader(tmp_path, plugins, monkeypatch, name, reader):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(MedgraftError, match=f"^{name} is a path. Say how to read it, such as {reader}:{name}$"):
        load_data(data_config(name, [], None), plugins=plugins)


def test_a_table_without_rows(tmp_path, plugins):
    with pytest.raises(DataError, match=r"t.csv has no rows with images"):
        _load(plugins, tmp_path, "")
