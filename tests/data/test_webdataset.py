"""WebDataset tars: samples by stem, splits by names, images read from within, and what is broken is reported."""

import bz2
import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from medgraft.benchmark import execute
from medgraft.config import DataConfig, run_config
from medgraft.data import load_data, open_image
from medgraft.data.members import member_bytes
from medgraft.data.webdataset import WebDataset
from medgraft.errors import DataError


def _png(number):
    pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(path, files, kind=tarfile.GNU_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            content = content.encode() if isinstance(content, str) else content
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def _samples(*numbers):
    return {f"{n}.{suffix}": content for n in numbers for suffix, content in (("png", _png(n)), ("txt", f"chest {n}"))}


def _read(plugins, path, **options):
    skip = options.pop("skip_bad_rows", False)
    config = DataConfig(name="webdataset", path=str(path), options=options, skip_bad_rows=skip)
    return load_data(config, plugins=plugins)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_with_splits_in_their_names(tmp_path, plugins, kind):
    _tar(tmp_path / "train-000.tar", _samples(1, 2), kind)
    _tar(
        tmp_path / "train-001.tar",
        {f"./{'deep/' * 18}é{name}": content for name, content in _samples(1).items()},
        tarfile.PAX_FORMAT,
    )
    _tar(tmp_path / "val/000.tar", _samples(3), kind)
    data = _read(plugins, tmp_path)
    assert [(e.split, e.captions) for e in data.examples] == [
        ("train", ("chest 1",)), ("train", ("chest 2",)), ("train", ("chest 1",)), ("validation", ("chest 3",)),
    ]  # fmt: skip
    assert [e.id for e in data.examples][:2] == ["train-000/1", "train-000/2"]
    assert [member_bytes(e.image) for e in data.examples] == [_png(n) for n in (1, 2, 1, 3)]
    assert np.array_equal(open_image(data.examples[1].image), Image.open(io.BytesIO(_png(2))))


_SAMPLES = {
    "txt": ({"a.png": _png(1), "a.txt": " a\u2028caption\n"}, ("a caption",)),
    "caption": ({"a.caption": "x", "a.JPG": _png(1)}, ("x",)),
    "json": ({"a.json": json.dumps({"caption": ["x", "y"], "n": 1}), "a.png": _png(1)}, ("x", "y")),
    "json that is the caption": ({"a.json": '"x"', "a.png": _png(1)}, ("x",)),
    "json beside txt": ({"a.jpg": _png(1), "a.json": '{"caption": "no"}', "a.txt": "yes"}, ("yes",)),
    "a byte order mark": ({"a.jpg": _png(1), "a.txt": "\ufeffx"}, ("x",)),
    "dots in the stem": ({"1.2.840.png": _png(1), "1.2.840.txt": "x"}, ("x",)),
    "other files": ({"a.cls": "1", "a.png": _png(1), "._a.png": b"mac", "a.txt": "x", "README": "hello"}, ("x",)),
    "images first, captions last": (
        {"a.png": _png(1), "b.png": _png(2), "c.png": _png(3), "a.txt": "x", "b.txt": "x", "c.txt": "x"}, ("x",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", _SAMPLES)
def test_samples(tmp_path, plugins, case):
    files, captions = _SAMPLES[case]
    data = _read(plugins, _tar(tmp_path / "test.tar", files))
    assert len(data.examples) == sum(name.endswith(("png", "jpg", "JPG")) and name[0] != "." for name in files)
    assert all(example.captions == captions for example in data.examples)
    assert member_bytes(data.examples[0].image) == _png(1)


_BAD = {
    "two images": ({"a.png": _png(1), "a.jpg": _png(1), "a.txt": "x"}, "test.tar, a: there are 2 images of this name"),
    "no image": ({"a.txt": "x"}, "test.tar, a: there are 0 images of this name"),
    "no text": ({"a.png": _png(1), "a.txt": b"\xff\xfe\xff"}, "test.tar, a.txt: this is not UTF-8 text"),
    "no JSON": ({"a.png": _png(1), "a.json": "{"}, "test.tar, a.json: this is not JSON"),
    "a caption that is a number": ({"a.png": _png(1), "a.json": '{"caption": 3}'}, "test.tar, a: the caption is the value 3"),
}


@pytest.mark.parametrize("case", _BAD)
def test_bad_samples_are_refused_or_listed(tmp_path, plugins, case):
    files, message = _BAD[case]
    path = _tar(tmp_path / "test.tar", {**files, **_samples(5)})
    with pytest.raises(DataError, match=message):
        _read(plugins, path)
    data = _read(plugins, path, skip_bad_rows=True)
    assert len(data.report.bad_rows) == 1 and data.examples[-1].captions == ("chest 5",)


def test_an_image_without_caption_is_counted(tmp_path, plugins):
    data = _read(plugins, _tar(tmp_path / "test.tar", {"a.png": _png(1), **_samples(2), "c.png": _png(3), "c.json": "{}"}))
    assert (len(data.examples), data.report.uncaptioned) == (1, 2)


def test_broken_tars(tmp_path, plugins):
    whole = _tar(tmp_path / "whole/test.tar", _samples(1, 2, 3)).read_bytes()
    second = whole.index(b"2.png")
    damaged = bytearray(whole)
    damaged[second] ^= 1  # the header's checksum is wrong now
    end = len(whole.rstrip(b"\0"))
    cases = {
        "cut in an image": (whole[: second + 700], 1), "cut in a header": (whole[: second + 100], 1),
        "cut after a file": (whole[:second], 1), "damaged": (bytes(damaged), 1),
        "joined": (whole[: end + 512 - end % 512 + 1024] + whole, 3), "no tar": (b"x" * 2000, 0), "empty": (b"", 0),
    }  # fmt: skip
    for case, (content, sound) in cases.items():
        path = tmp_path / case / "test.tar"
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"test.tar, after .*: the archive is broken: .*; copy it again"):
            _read(plugins, path)
        reader = WebDataset()
        reader.notes.skip_bad_rows = True
        assert len(list(reader.read(path))) == sound, case
        assert len(reader.notes.bad_rows) == 1, case


@pytest.mark.parametrize(("pack", "command"), [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2")])
def test_compressed_tars_are_refused(tmp_path, plugins, pack, command):
    whole = _tar(tmp_path / "test.tar", _samples(1)).read_bytes()
    (tmp_path / "test.tar").write_bytes(pack(whole))
    with pytest.raises(DataError, match=f"test.tar is compressed, .*: {command} .*test.tar"):
        _read(plugins, tmp_path / "test.tar")
    (tmp_path / "test.tar").rename(tmp_path / "test.tar.gz")
    with pytest.raises(DataError, match=r"test.tar.gz is compressed"):
        _read(plugins, tmp_path)


@pytest.mark.parametrize(
    "pattern", ["train-{0..2}.tar", "train-{0,1,2}.tar", "train-?.tar", "t*-[0-2].tar", "{train,train}-{0..2}.tar"]
)
def test_patterns(tmp_path, plugins, pattern):
    for number in (0, 1, 2, 33):
        _tar(tmp_path / f"train-{number}.tar", _samples(number))
    assert [e.captions[0] for e in _read(plugins, tmp_path / pattern).examples] == ["chest 0", "chest 1", "chest 2"]


def test_what_is_not_there(tmp_path, plugins):
    _tar(tmp_path / "train-09.tar", _samples(1))
    for pattern, absent in (("train-{09..10}.tar", "train-10.tar"), ("*.tra", r"\*.tra"), ("x.tar", "x.tar")):
        with pytest.raises(DataError, match=f"There is no .*{absent}"):
            _read(plugins, tmp_path / pattern)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no .tar files"):
        _read(plugins, tmp_path / "empty")


def test_splits(tmp_path, plugins):
    files = _samples(*range(60))
    data = _read(plugins, _tar(tmp_path / "all.tar", files))
    counts = [len(data.split(split)) for split in ("train", "validation", "test")]
    assert min(counts) > 0 and sum(counts) == 60
    assert data.report.assumptions[-1].endswith(f"name: {counts[0]} train, {counts[1]} validation, {counts[2]} test.")
    inside = {f"set/{'test' if n > 50 else 'train'}/{name}": files[name] for name in files for n in [int(name.split(".")[0])]}
    data = _read(plugins, _tar(tmp_path / "all.tar", inside))
    assert [len(data.split(split)) for split in ("train", "test")] == [51, 9]
    with pytest.raises(DataError, match="some samples lie in folders that say a split, and others do not"):
        _read(plugins, _tar(tmp_path / "all.tar", {**inside, **_samples(1)}))
    _tar(tmp_path / "test.tar", _samples(1))
    with pytest.raises(DataError, match=r"all.tar, its name: says no split, as other tars do"):
        _read(plugins, tmp_path)


def test_groups_stay_in_one_split(tmp_path, plugins):
    files = {}
    for number in range(60):
        files |= {f"{number}.png": _png(number), f"{number}.json": json.dumps({"report": "x", "patient": number // 3})}
    data = _read(plugins, _tar(tmp_path / "all.tar", files), caption="report", group="patient")
    splits = {}
    for example in data.examples:
        splits.setdefault(example.group, set()).add(example.split)
    assert len(splits) == 20 and all(len(found) == 1 for found in splits.values())


def test_training(tmp_path, plugins, blip_folder):
    _tar(tmp_path / "train.tar", _samples(1, 2, 3))
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy="lora", data=f"webdataset:{tmp_path}",
        overrides=["train.max_steps=1", "train.per_device_train_batch_size=2", "train.bf16=false"],
    )  # fmt: skip
    assert execute(config, tmp_path / "out", plugins=plugins, evaluate=False).record.steps == 1
