"""Every layout is read as it comes, and what is wrong with it is reported."""

import json

import numpy as np
import pytest
from PIL import Image

from medgraft.config import DataConfig
from medgraft.data import data_fingerprint, load_data
from medgraft.errors import ConfigError, DataError


def _image(path, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def _read(plugins, name, path, **options):
    return load_data(DataConfig(name=name, path=str(path), options=options), plugins=plugins)


def test_roco_v1_with_both_image_namings_and_articles_as_groups(tmp_path, plugins):
    folder = tmp_path / "train/radiology"
    _image(folder / "images/ROCO_1.jpg")
    _image(folder / "images/PMC7_fig-2.jpg")
    (folder / "captions.txt").write_text(
        'ROCO_1\t A "quoted, caption\u2028with all\u00a0kinds\u0085of space\nROCO_2\t Tab\there\n'
    )
    (folder / "licences.txt").write_text("ROCO_ID,PMC_ID,CC\nROCO_1,PMC7_fig-1.jpg,CC BY\nROCO_2,PMC7_fig-2.jpg,CC BY\n")
    data = _read(plugins, "roco", tmp_path)
    first, second = data.examples
    assert first.captions == ('A "quoted, caption with all kinds of space',)
    assert second.captions == ("Tab here",)
    assert second.image.name == "PMC7_fig-2.jpg"
    assert (first.group, second.group, first.split) == ("PMC7", "PMC7", "train")


def test_missing_corrupt_and_captionless_are_counted_not_fatal(tmp_path, plugins):
    folder = tmp_path / "test/radiology"
    _image(folder / "images/R1.jpg")
    _image(folder / "images/R3.jpg")
    whole = (folder / "images/R3.jpg").read_bytes()
    (folder / "images/R3.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "images/R4.jpg").write_text("not an image")
    (folder / "captions.txt").write_text("R1\t good\nR2\t missing\nR3\t cut off\nR4\t text\nR5\t \n")
    data = _read(plugins, "roco", tmp_path)
    assert [e.id for e in data.examples] == ["R1"]
    assert (len(data.report.missing), len(data.report.corrupt), data.report.uncaptioned) == (1, 2, 1)
    assert data.report.corrupt[0] == f"{folder / 'images/R3.jpg'}: its content is damaged or not supported: Truncated File Read"
    assert data.report.corrupt[1] == f"{folder / 'images/R4.jpg'}: it is text, not an image"
    assert str(data.report) == "1 missing images, 2 unreadable images, 1 images without caption"


def test_nothing_usable_is_an_error(tmp_path, plugins):
    folder = tmp_path / "train/radiology"
    folder.mkdir(parents=True)
    (folder / "captions.txt").write_text("R1\t good\nR2\t bad\n")
    with pytest.raises(DataError, match=r"has no usable images: 2 missing, 0 unreadable, such as .*R1.jpg"):
        _read(plugins, "roco", tmp_path)


def test_the_non_radiology_half(tmp_path, plugins):
    for subset in ("radiology", "non-radiology"):
        _image(tmp_path / "train" / subset / f"images/{subset}.jpg")
        (tmp_path / "train" / subset / "captions.txt").write_text(f"{subset}\t x\n")
    assert [e.id for e in _read(plugins, "roco", tmp_path).examples] == ["radiology"]
    assert len(_read(plugins, "roco", tmp_path, subset="all").examples) == 2


def test_kaggle_roco(tmp_path, plugins):
    root = tmp_path / "all_data"
    _image(root / "train/radiology/images/PMC1_a.jpg")
    (root / "train/radiology/traindata.csv").write_text('id,name,caption\nROCO_1,PMC1_a.jpg,"one, two"\n')
    _image(root / "validation/radiology/images/PMC2_b.jpg")
    (root / "validation/valdata.csv").write_text("id,name,caption\nROCO_2,PMC2_b.jpg,three\n")
    train, validation = _read(plugins, "roco-kaggle", tmp_path).examples
    assert (train.captions, train.group, train.split) == (("one, two",), "PMC1", "train")
    assert validation.split == "validation"


def test_rocov2_with_nested_images(tmp_path, plugins):
    _image(tmp_path / "valid_images/valid_images/ROCOv2_1.jpg")
    (tmp_path / "valid_captions.csv").write_text("ID,Caption\nROCOv2_1,a caption\n")
    (example,) = _read(plugins, "rocov2", tmp_path).examples
    assert (example.split, example.captions) == ("validation", ("a caption",))


@pytest.mark.parametrize(("header", "separator"), [("ID\tcaption", "\t"), ("ID,Caption", ","), ("id\tCaption", "\t")])
def test_imageclef_of_every_year(tmp_path, plugins, header, separator):
    _image(tmp_path / "train/im_1.jpg")
    (tmp_path / "2023.csv").write_text(f'{header}\nim_1{separator}seen "it"\n')
    (example,) = _read(plugins, "imageclef", tmp_path, train="2023.csv").examples
    assert example.captions == ('seen "it"',)


def test_tables(tmp_path, plugins):
    for name in ("a.png", "b.png"):
        _image(tmp_path / "pictures" / name)
    rows = [("a.png", "one", "p1", "val"), ("a.png", "two", "p1", "val"), ("b.png", "three", "p2", "test")]
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"table.{kind}"
        path.write_text("\n".join(separator.join(row) for row in [("file", "text", "who", "part"), *rows]))
        options = {"image": "file", "caption": "text", "group": "who", "split": "part", "images": "pictures"}
        a, b = _read(plugins, kind, path, **options).examples
        assert (a.captions, a.group, a.split, b.split) == (("one", "two"), "p1", "validation", "test")
    path = tmp_path / "table.jsonl"
    path.write_text(json.dumps({"image": "pictures/a.png", "caption": ["one", "two"]}) + "\n\n")
    (a,) = _read(plugins, "jsonl", path).examples
    assert a.captions == ("one", "two")


def test_a_table_without_splits_is_divided_by_group_always_the_same_way(tmp_path, plugins):
    for i in range(60):
        _image(tmp_path / f"{i}.png")
    lines = ["image,caption,patient", *(f"{i}.png,text {i},p{i // 3}" for i in range(60))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = _read(plugins, "csv", tmp_path / "t.csv", group="patient")
    splits = {}
    for example in data.examples:
        splits.setdefault(example.group, set()).add(example.split)
    assert all(len(found) == 1 for found in splits.values())
    assert 30 < len(data.split("train")) < 60
    again = _read(plugins, "csv", tmp_path / "t.csv", group="patient")
    assert [e.split for e in again.examples] == [e.split for e in data.examples]


def test_coco_json(tmp_path, plugins):
    _image(tmp_path / "val2017/1.jpg")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
        "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 1, "caption": "two"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_val2017.json").write_text(json.dumps(content))
    data = _read(plugins, "coco", tmp_path)
    assert [(e.id, e.captions, e.split) for e in data.examples] == [("1", ("one", "two"), "validation")]
    assert data.report.uncaptioned == 1


def test_imagefolder(tmp_path, plugins):
    _image(tmp_path / "train/a.png")
    _image(tmp_path / "test/b.png")
    (tmp_path / "train/metadata.csv").write_text("file_name,text\na.png,one\n")
    (tmp_path / "test/metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "two"}))
    data = _read(plugins, "imagefolder", tmp_path)
    assert {(e.split, e.captions) for e in data.examples} == {("train", ("one",)), ("test", ("two",))}


def test_real_radiographs(shared_data, plugins):
    data = _read(plugins, "roco", shared_data / "cxr-notes", groups="ATTRIBUTION.csv", group_column="patient")
    assert [len(data.split(s)) for s in ("train", "validation", "test")] == [254, 25, 76]
    groups = [{e.group for e in data.split(s)} for s in ("train", "validation", "test")]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "csv",
            "file,text\na.png,x\n",
            {},
            r"has no 'image'.*Columns: file, text. Set the column names with --set data",
        ),
        ("csv", "image,caption,part\na.png,x,oops\n", {"split": "part"}, "'oops' is not a split"),
        ("jsonl", "{broken", {}, "line 1: it is not JSON"),
        ("coco", "{}", {}, "is not COCO captions JSON: it has no list 'images'"),
    ],
)
def test_bad_files(tmp_path, plugins, name, content, options, message):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        _read(plugins, name, path, **options)


@pytest.mark.parametrize("name", ["roco", "roco-kaggle", "rocov2", "imageclef", "coco", "imagefolder"])
def test_an_empty_folder(tmp_path, plugins, name):
    with pytest.raises(DataError, match=r"no |holds n"):
        _read(plugins, name, tmp_path)


def test_paths_and_options_that_are_not(tmp_path, plugins):
    with pytest.raises(DataError, match=r"There is no .*nowhere"):
        _read(plugins, "roco", tmp_path / "nowhere")
    with pytest.raises(DataError, match="needs a path: write roco:PATH"):
        load_data(DataConfig(name="roco"), plugins=plugins)
    with pytest.raises(ConfigError, match=r"Data roco: unknown key 'subste'. Did you mean 'subset'"):
        _read(plugins, "roco", tmp_path, subste="all")


def test_the_fingerprint_sees_contents_not_places(tmp_path, plugins):
    def make(root, caption):
        _image(tmp_path / "same.jpg")
        folder = tmp_path / root / "train/radiology"
        (folder / "images").mkdir(parents=True)
        (folder / "images/R.jpg").write_bytes((tmp_path / "same.jpg").read_bytes())
        (folder / "captions.txt").write_text(f"R\t {caption}\n")
        return data_fingerprint(_read(plugins, "roco", tmp_path / root).examples)

    assert make("one", "a") == make("two", "a") != make("three", "b")


def test_max_images_counts_usable_ones(tmp_path, plugins):
    folder = tmp_path / "test/radiology"
    for i in (3, 4, 5):
        _image(folder / f"images/R{i}.jpg")
    (folder / "captions.txt").write_text("".join(f"R{i}\t text {i}\n" for i in range(1, 6)))
    data = load_data(DataConfig(name="roco", path=str(tmp_path), max_images=2), plugins=plugins)
    assert [e.id for e in data.examples] == ["R3", "R4"]
    assert len(data.report.missing) == 2


def test_an_export_from_excel_needs_no_option(tmp_path, plugins):
    for name in ("a.png", "b.png"):
        _image(tmp_path / "bilder" / name)
    rows = "image;caption;split\r\nbilder\\a.png;Ödem, links;train\r\nbilder\\b.png;;test\r\n"
    (tmp_path / "t.csv").write_bytes(rows.encode("cp1252"))
    data = _read(plugins, "csv", tmp_path / "t.csv")
    assert [(e.id, e.captions, e.split) for e in data.examples] == [("bilder/a.png", ("Ödem, links",), "train")]
    assert data.report.uncaptioned == 1
    assert len(data.report.assumptions) == 3


def test_data_root(tmp_path, plugins):
    _image(tmp_path / "images/a.png")
    (tmp_path / "t.csv").write_text("image,caption\n/gone/a.png,x\n")
    config = DataConfig(name="csv", path=str(tmp_path / "t.csv"), root=str(tmp_path / "images"))
    assert [e.image for e in load_data(config, plugins=plugins).examples] == [tmp_path / "images/a.png"]
    with pytest.raises(DataError, match=r"data.root is .*nowhere, which is not a folder"):
        load_data(config.model_copy(update={"root": str(tmp_path / "nowhere")}), plugins=plugins)
