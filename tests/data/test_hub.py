"""Hugging Face data sets: each form is read, columns are found, and images are read by their place in the Arrow file."""

import io
import json
import os
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medgraft.benchmark import execute
from medgraft.config import DataConfig, run_config
from medgraft.data import data_fingerprint, load_data, open_image
from medgraft.data.hub import HubDataset
from medgraft.data.members import member_bytes
from medgraft.errors import DataError
from medgraft.types import ImagePart


def _png(number):
    pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _rocov2(*numbers):
    """Rows as on the hub: image, image_id, caption, cui."""
    columns = {
        "image": [{"bytes": _png(number), "path": f"ROCOv2_{number}.png"} for number in numbers],
        "image_id": [f"ROCOv2_{number}" for number in numbers],
        "caption": [f"chest of {number}" for number in numbers],
        "cui": [["C0817096", f"C{number:07}"] for number in numbers],
    }
    features = datasets.Features(
        image=datasets.Image(), image_id=datasets.Value("string"), caption=datasets.Value("string"),
        cui=datasets.List(datasets.Value("string")),
    )  # fmt: skip
    return datasets.Dataset.from_dict(columns, features=features)


def _read(plugins, path, **options):
    own = {key: options.pop(key) for key in ("skip_bad_rows", "root") if key in options}
    return load_data(DataConfig(name="hf", path=str(path), options=options, **own), plugins=plugins)


def _save(folder, form):
    """ROCOv2's rows 1 and 2 as train, 3 as validation, 4 as test."""
    parts = {"train": _rocov2(1, 2), "validation": _rocov2(3), "test": _rocov2(4)}
    if form == "save_to_disk":
        datasets.DatasetDict(parts).save_to_disk(folder)
        return
    (folder / "data").mkdir(parents=True)
    for split, part in parts.items():
        if form == "parquet":
            part.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
        elif form == "folders":
            (folder / f"default/{split}").mkdir(parents=True)
            part.to_parquet(folder / f"default/{split}/0000.parquet")
        elif form == "arrow":
            with (
                pa.OSFile(str(folder / f"data/{split}.arrow"), "wb") as file,
                pa.ipc.new_file(file, part.data.schema) as writer,
            ):
                writer.write_table(part.data.table, max_chunksize=1)


@pytest.mark.parametrize("form", ["save_to_disk", "parquet", "folders", "arrow"])
def test_rocov2_as_on_the_hub_in_every_form(tmp_path, plugins, form):
    _save(tmp_path / "set", form)
    data = _read(plugins, tmp_path / "set")
    assert [len(data.split(split)) for split in ("train", "validation", "test")] == [2, 1, 1]
    second = data.examples[1]
    assert (second.id, second.captions, second.concepts) == ("ROCOv2_2", ("chest of 2",), ("C0817096", "C0000002"))
    assert [member_bytes(example.image) for example in data.examples] == [_png(number) for number in (1, 2, 3, 4)]
    assert np.array_equal(open_image(second.image), Image.open(io.BytesIO(_png(2))))
    assert "image 'image', caption 'caption', id 'image_id', concepts 'cui'" in data.report.assumptions[-1]
    assert data_fingerprint(data.examples) == data_fingerprint(_read(plugins, tmp_path / "set").examples)


def test_many_rows_in_pieces_are_the_right_ones(tmp_path, plugins):
    numbers = range(2300)
    table = pa.table({"image": [b"%d" % n for n in numbers], "text": [f"t{n}" for n in numbers]})
    pq.write_table(table, tmp_path / "test.parquet", row_group_size=700)
    examples = list(HubDataset().read(tmp_path / "test.parquet"))
    assert [member_bytes(example.image) for example in examples] == [b"%d" % n for n in numbers]
    assert [example.captions for example in examples] == [(f"t{n}",) for n in numbers]
    assert [example.id for example in examples] == [str(n + 1) for n in numbers]


_IMAGE_COLUMNS = {
    "bytes": lambda folder: pa.array([_png(1), _png(2)]),
    "large bytes": lambda folder: pa.array([_png(1), _png(2)], pa.large_binary()),
    "bytes alone": lambda folder: pa.array([{"bytes": _png(1)}, {"bytes": _png(2)}]),
    "paths": lambda folder: pa.array(["1.png", str(folder / "2.png")]),
    "Windows paths": lambda folder: pa.array([".\\1.png", ".\\2.png"]),
    "bytes or path": lambda folder: pa.array([{"bytes": _png(1), "path": None}, {"bytes": None, "path": "2.png"}]),
    "paths of an Image": lambda folder: pa.array([{"bytes": None, "path": "1.png"}, {"bytes": None, "path": "2.png"}]),
}


@pytest.mark.parametrize("form", _IMAGE_COLUMNS)
def test_image_columns(tmp_path, plugins, form):
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(_png(number))
    pq.write_table(pa.table({"image": _IMAGE_COLUMNS[form](tmp_path), "caption": ["a", "b"]}), tmp_path / "test.parquet")
    data = _read(plugins, tmp_path / "test.parquet")
    assert [e.split for e in data.examples] == ["test"] * 2
    for number, example in enumerate(data.examples, start=1):
        assert np.array_equal(open_image(example.image), Image.open(tmp_path / f"{number}.png"))


def _table(folder, name="data.parquet", **columns):
    length = max(len(values) for values in columns.values() if values is not None)
    rows = {"image": [_png(n) for n in range(length)], "caption": [f"c{n}" for n in range(length)], **columns}
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({name: values for name, values in rows.items() if values is not None}), folder / name)
    return folder / name


def test_captions_that_are_missing_lists_or_numbers(tmp_path, plugins):
    captions = pa.array([["one", "two"], [], None, ["nan"], [" b  b "]])
    data = _read(plugins, _table(tmp_path, "test.parquet", caption=captions))
    assert [e.captions for e in data.examples] == [("one", "two"), ("b b",)] and data.report.uncaptioned == 3
    path = _table(tmp_path, "test2.parquet", caption=pa.array([float("nan"), None, 3.5]))
    with pytest.raises(DataError, match=r"test2.parquet, row 3: the caption is the number 3.5; it must be a text"):
        _read(plugins, path)
    with pytest.raises(DataError, match="no usable images: none has a caption"):
        _read(plugins, path, skip_bad_rows=True)


@pytest.mark.parametrize("column", ["split", "Subset"])
def test_a_split_column_is_found(tmp_path, plugins, column):
    data = _read(plugins, _table(tmp_path, **{column: ["train", "val", "TEST", "dev"]}))
    assert [e.split for e in data.examples] == ["train", "validation", "validation", "test"]


def test_a_split_column_is_refused_or_ignored(tmp_path, plugins):
    path = _table(tmp_path, split=["train", "gold", "test"])
    with pytest.raises(DataError, match="row 2: 'gold' is no split"):
        _read(plugins, path)
    data = _read(plugins, path, skip_bad_rows=True)
    assert (len(data.examples), data.report.bad_rows[0].place) == (2, "row 2")
    path = _table(tmp_path, split=["1", "2", "1"])
    assert "Column 'split' is not used, as values such as '1' are no" in _read(plugins, path).report.assumptions[-2]
    named = _table(tmp_path, "test.parquet", split=["train", "train"])
    assert "as files or the hub have splits" in _read(plugins, named).report.assumptions[-1]


@pytest.mark.parametrize(
    "name", ["data-00000-of-00001.parquet", "train-00000-of-00001.parquet", "latest.parquet", "devices.parquet"]
)
def test_data_without_splits_are_split_by_hash(tmp_path, plugins, name):
    path = _table(tmp_path, name, image_id=[f"i{n}" for n in range(60)], patient_id=[n // 3 for n in range(60)])
    data = _read(plugins, path)
    counts = [len(data.split(split)) for split in ("train", "validation", "test")]
    assert min(counts) > 0 and counts[0] > 36
    note = f"a hash of their group or name: {counts[0]} train, {counts[1]} validation, {counts[2]} test."
    assert data.report.assumptions[-1].endswith(note)
    splits = {}
    for example in data.examples:
        splits.setdefault(example.group, set()).add(example.split)
    assert all(len(found) == 1 for found in splits.values())


def test_ids_that_occur_twice(tmp_path, plugins):
    path = _table(tmp_path, image_id=[f"i{n // 2}" for n in range(40)])
    data = _read(plugins, path)
    assert "Ids are row numbers, since 'image_id' has values twice" in data.report.assumptions[-2]
    where = {example.id: example.split for example in data.examples}
    assert all(where[str(n)] == where[str(n + 1)] for n in range(1, 40, 2))
    with pytest.raises(DataError, match="id 'i0' occurs twice"):
        _read(plugins, path, id="image_id")


_REFUSED = {
    "no caption column": ({"caption": None, "label": ["a"]}, {}, "no column of captions was found.*data.caption=COLUMN.*label"),
    "no image column": ({"image": None, "scan": ["a.png"]}, {}, "no column of images was found.*data.image=COLUMN"),
    "two image columns": ({"image": None, "left": [_png(1)], "right": [_png(2)]}, {}, "no column of images was found"),
    "a wrong name": ({}, {"caption": "captoin"}, "no column 'captoin'. Did you mean 'caption'"),
    "captions that are objects": ({"caption": [{"text": "a"}]}, {"caption": "caption"}, "column 'caption' holds no captions"),
    "images in lists": ({"image": [[_png(1)]]}, {"image": "image"}, "column 'image' holds no images"),
    "an image on the web": ({"image": ["https://a.b/c.png"]}, {}, "row 1: the image 'https://a.b/c.png' is a URL"),
    "no image": ({"image": pa.array([None], pa.binary())}, {}, "row 1: the image is null"),
    "no id": ({"id": pa.array([None], pa.string())}, {}, "row 1: the id is empty"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_is_refused_in_one_line(tmp_path, plugins, case):
    columns, options, message = _REFUSED[case]
    path = _table(tmp_path, "test.parquet", **{"caption": ["a"], "image": [_png(1)], **columns})
    with pytest.raises(DataError, match=message) as error:
        _read(plugins, path, **options)
    assert "\n" not in str(error.value)


def test_files_that_do_not_belong_together_or_are_broken(tmp_path, plugins):
    _table(tmp_path / "a", "train.parquet", caption=["x"])
    other = _table(tmp_path / "a", "extra.parquet", caption=["x"])
    with pytest.raises(DataError, match=r"extra.parquet, its name: says no split; rename it"):
        _read(plugins, tmp_path / "a")
    assert len(_read(plugins, tmp_path / "a", skip_bad_rows=True).examples) == 1
    other.rename(tmp_path / "a/test.txt")
    _table(tmp_path / "a", "test.parquet", caption=["x"], more=["y"])
    with pytest.raises(DataError, match="has other columns than"):
        _read(plugins, tmp_path / "a")
    for name, content in (("b/x.parquet", b"PAR1 no"), ("c/x.arrow", b"nothing"), ("d/x.arrow", b"")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"x\.\w+ cannot be read"):
            _read(plugins, tmp_path / name)
    with pytest.raises(DataError, match="holds no parquet or arrow files"):
        (tmp_path / "e").mkdir()
        _read(plugins, tmp_path / "e")
    with pytest.raises(DataError, match="says test and train"):
        _read(plugins, _table(tmp_path / "f", "train_test.parquet", caption=["x"]))
    table = pa.table({"image": [bytes(1000)], "caption": ["x"]})
    with pa.OSFile(str(tmp_path / "e/z.arrow"), "wb") as file:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(file, table.schema, options=options) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=r"z.arrow is compressed"):
        _read(plugins, tmp_path / "e/z.arrow")


def test_a_hub_data_set_from_the_cache(tmp_path, plugins, monkeypatch):
    """Its ids begin anew in each split."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for split in ("train", "test"):
        _rocov2(1, 2).to_parquet(tmp_path / f"{split}.parquet")
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    datasets.load_dataset("parquet", data_files=files)
    (about,) = tmp_path.glob("parquet/default-*/0.0.0/*/dataset_info.json")
    place = tmp_path / "someone___roco/default/0.0.0" / ("0" * 40)
    shutil.copytree(about.parent, place)
    for file in place.glob("*.arrow"):
        file.rename(place / file.name.replace("parquet-", "roco-"))
    content = json.loads(about.read_text())
    (place / about.name).write_text(json.dumps({**content, "dataset_name": "roco", "config_name": "default"}))
    data = _read(plugins, "someone/roco")
    assert [(e.id, e.split) for e in data.examples] == [
        ("ROCOv2_1", "train"), ("ROCOv2_2", "train"), ("ROCOv2_1", "test"), ("ROCOv2_2", "test"),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"the hub's someone/roco cannot be read: .* for config 'other'"):
        _read(plugins, "someone/roco", config="other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/no-such-set", "There is no folder nobody/no-such-set, and the hub's nobody/no-such-set cannot be read: .*"),
        ("no/such/folder", "There is no no/such/folder, and it is no hub id"),
        ("absent.parquet", "There is no absent.parquet"),
    ],
)
def test_what_is_not_there(plugins, name, message):
    with pytest.raises(DataError, match=message) as error:
        _read(plugins, name)
    assert "\n" not in str(error.value)


def test_members_of_files_that_changed_and_other_members(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert member_bytes(ImagePart(path, "a @b @3+4")) == b"3456"
    with pytest.raises(OSError, match="ends before byte 12"):
        member_bytes(ImagePart(path, "a @8+4"))
    with pytest.raises(DataError, match="has to end in @OFFSET"):
        member_bytes(ImagePart(path, "a"))


def test_parquet_without_rows(tmp_path, plugins):
    none, one = pa.array([], pa.string()), pa.array(["x"])
    pq.write_table(pa.table({"image": none, "caption": none}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="has no rows"):
        _read(plugins, tmp_path)
    (tmp_path / "x").write_bytes(_png(1))
    pq.write_table(pa.table({"image": one, "caption": one}), tmp_path / "test.parquet")
    assert [example.split for example in _read(plugins, tmp_path).examples] == ["test"]


def test_parquet_is_copied_to_arrow_once_and_again_when_it_changes(tmp_path, plugins):
    path = _table(tmp_path, "test.parquet", caption=["old"])
    assert "Parquet was copied to Arrow" in _read(plugins, path).report.assumptions[0]
    first = _read(plugins, path).examples[0]
    os.utime(path, (1, 1))
    _table(tmp_path, "test.parquet", caption=["new"])
    second = _read(plugins, path).examples[0]
    assert (first.captions, second.captions) == (("old",), ("new",)) and first.image.path != second.image.path


def test_training_and_stored_features(tmp_path, plugins, blip_folder):
    _save(tmp_path / "set", "parquet")
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy="encoder-frozen", data=f"hf:{tmp_path / 'set'}",
        overrides=["train.max_steps=2", "train.per_device_train_batch_size=2", "train.bf16=false"],
    )  # fmt: skip
    record = execute(config, tmp_path / "out", plugins=plugins, evaluate=False).record
    assert record.steps == 2 and record.features.built == 2
    again = execute(config, tmp_path / "again", plugins=plugins, evaluate=False).record
    assert (again.features.found, again.features.built) == (2, 0) and again.train_loss == record.train_loss
