"""What is unchanged is not read again, what has changed is noticed, and an index that cannot be used costs nothing but time."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BlipConfig

import medgraft.file_index as module
from medgraft.backbones import checkpoint, weights
from medgraft.backbones.checkpoint import read_checkpoint
from medgraft.benchmark import execute
from medgraft.config import run_config
from medgraft.data.images import ImageFile, image_digests, inspect_images
from medgraft.errors import DataError
from medgraft.file_index import FileIndex, cache_folder, file_state
from medgraft.types import ImagePart

_OPENED: list[Path] | None = None


def _note(event, arguments):
    if event == "open" and _OPENED is not None and isinstance(arguments[0], str | Path):
        _OPENED.append(Path(arguments[0]))


sys.addaudithook(_note)  # which nobody can remove again


@contextmanager
def opened_below(folder):
    """The files below `folder` that Python opens inside the block."""
    global _OPENED
    _OPENED, found = [], []
    try:
        yield found
    finally:
        found += [path for path in _OPENED if path.is_relative_to(folder)]
        _OPENED = None


@pytest.fixture
def index_folder(tmp_path, monkeypatch):
    """An index of its own, in which files count as soon as they are written."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MEDGRAFT_CACHE", str(folder))
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0.0)
    module._warn_once.cache_clear()
    return folder


@pytest.fixture
def images(tmp_path):
    """Three images and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.linear_gradient("L").resize((20 + number, 10)).save(folder / f"{number}.png")
    (folder / "3.png").write_text("no image")
    return sorted(folder.iterdir())


def test_images_are_read_once(index_folder, images):
    absent = images[0].with_name("absent.png")
    with opened_below(images[0].parent) as read:
        first = inspect_images([*images, absent])
    assert sorted(read) == images
    with opened_below(images[0].parent) as read:
        assert inspect_images([*images, absent]) == first
        assert image_digests(images[:3]) == {path: first[path].sha256 for path in images[:3]}
    assert read == [images[3]]  # what cannot be decoded is tried again
    assert first[images[1]].size == (21, 10) and first[images[1]].problem is None
    assert first[images[3]].problem == "it is text, not an image" and first[absent] is None


def test_links_and_relative_paths_are_the_same_file(index_folder, images, monkeypatch):
    first = inspect_images(images[:3])
    link = images[0].parent.with_name("link")
    link.symlink_to(images[0].parent)
    monkeypatch.chdir(images[0].parent)
    with opened_below("/") as read:
        assert inspect_images([link / "0.png", Path("1.png")]) == {
            link / "0.png": first[images[0]], Path("1.png"): first[images[1]]
        }  # fmt: skip
    assert not [path for path in read if path.suffix == ".png"]


def _overwrite(path, content):
    path.write_bytes(content)


def _replace(path, content):
    other = path.with_suffix(".new")
    other.write_bytes(content)
    other.replace(path)


def _lead_elsewhere(path, content):
    other = path.with_suffix(".new")
    other.write_bytes(content)
    path.unlink()
    path.symlink_to(other)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of change that a program cannot set")
@pytest.mark.parametrize("change", [_overwrite, _replace, _lead_elsewhere])
def test_other_content_of_the_same_size_and_mtime_is_noticed(change, index_folder, images):
    path = images[0]
    before, times = inspect_images([path])[path], path.stat()
    content = path.read_bytes()
    time.sleep(0.02)  # longer than a tick of the clock of the file system
    change(path, content[:-1] + b"\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert inspect_images([path])[path].sha256 != before.sha256
    assert image_digests([path])[path] == inspect_images([path])[path].sha256


def test_a_file_just_written_is_not_entered(index_folder, images, monkeypatch):
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 2.0)
    inspect_images(images[:1])
    with opened_below(images[0].parent) as read:
        inspect_images(images[:1])
    assert read == images[:1]
    now = time.time
    monkeypatch.setattr(module.time, "time", lambda: now() + 3)
    inspect_images(images[:1])
    with opened_below(images[0].parent) as read:
        inspect_images(images[:1])
    assert not read


def test_a_file_changed_while_it_is_read_is_not_found(index_folder, images):
    index, path = FileIndex("test"), images[0]
    state = file_state(path)
    time.sleep(0.02)
    path.write_bytes(path.read_bytes())
    index.enter({path: (state, "stale")})
    assert index.find([path]) == {}
    index.enter({path: (file_state(path), "fresh")})
    assert index.find([path]) == {path: "fresh"}


def test_another_version_of_what_reads_finds_nothing(index_folder, images):
    FileIndex("image 1, Pillow 11").enter({images[0]: (file_state(images[0]), {})})
    assert FileIndex("image 1, Pillow 12").find(images) == {}


def test_an_image_that_is_gone_is_an_error(index_folder, images):
    inspect_images(images)
    images[0].unlink()
    assert inspect_images(images[:1]) == {images[0]: None}
    with pytest.raises(DataError, match=r"The image .*0\.png cannot be read: No such file"):
        image_digests(images)


def test_parts_of_a_file_have_entries_of_their_own(index_folder, images):
    index, parts = FileIndex("test"), [images[0], *(ImagePart(images[0], frame=n) for n in range(2))]
    index.enter({part: (file_state(images[0]), number) for number, part in enumerate(parts)})
    assert index.find([*parts, ImagePart(images[0], window="full")]) == {part: number for number, part in enumerate(parts)}
    digests = image_digests([*parts, ImagePart(images[0], window="full"), ImagePart(images[0])])
    assert len(set(digests.values())) == 4  # a part without settings is the file
    assert inspect_images(parts[:2])[parts[1]].sha256 == digests[parts[1]]
    time.sleep(0.02)
    images[0].write_bytes(images[0].read_bytes())
    assert index.find(parts) == {}


_ENTER_ALL = """
import sys
from pathlib import Path
import medgraft.file_index as module
module._SETTLED_SECONDS = 0.0
index = module.FileIndex("test", Path(sys.argv[1]))
sys.stdin.readline()  # until all processes are up
files = sorted(Path(sys.argv[2]).iterdir())
for path in files:
    index.enter({path: (module.file_state(path), "same")})
    assert index.find([path]) == {path: "same"}
"""


def test_many_processes_use_one_index_at_once(tmp_path, index_folder):
    files = tmp_path / "files"
    files.mkdir()
    for number in range(40):
        (files / str(number)).write_text("x")
    command = [sys.executable, "-c", _ENTER_ALL, str(index_folder), str(files)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate("go\n", timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4 and said == [""] * 4  # nor a warning
    with sqlite3.connect(index_folder / module._NAME) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert len(FileIndex("test").find(list(files.iterdir()))) == 40


def _damage(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"no database " * 1000)


def _cut_short(file):
    FileIndex("test").enter({Path(__file__): (file_state(Path(__file__)), "x" * 100_000)})
    os.truncate(file, file.stat().st_size // 2)


def _put_a_file_where_the_folder_should_be(file):
    file.parent.write_text("")


@pytest.mark.parametrize("spoil", [_damage, _cut_short, _put_a_file_where_the_folder_should_be])
def test_an_index_that_cannot_be_used_is_warned_of_once(spoil, index_folder, images, caplog):
    spoil(index_folder / module._NAME)
    with caplog.at_level(logging.WARNING, "medgraft"):
        for _ in range(2):
            found = inspect_images(images)
            assert found[images[2]] == ImageFile(image_digests(images)[images[2]], (22, 10))
    assert len(caplog.messages) == 1, caplog.messages
    assert "cannot be used" in caplog.text and str(index_folder) in caplog.text


def test_a_locked_index_is_done_without(index_folder, images, caplog, monkeypatch):
    first = inspect_images(images)
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
    with sqlite3.connect(index_folder / module._NAME) as other, caplog.at_level(logging.WARNING, "medgraft"):
        other.execute("BEGIN EXCLUSIVE")
        assert inspect_images(images) == first
        other.rollback()
    other.close()
    assert ["database is locked" in message for message in caplog.messages] == [True]
    with opened_below(images[0].parent) as read:
        assert inspect_images(images) == first
    assert read == images[3:]


@contextmanager
def read_only(folder):
    """Nobody may write into `folder` inside the block, not even root."""
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="has no permissions of this kind")
def test_an_index_in_a_read_only_folder_is_still_read(monkeypatch, caplog, index_folder):
    with tempfile.TemporaryDirectory() as place:  # pytest's folders let no other user in
        folder = Path(place)
        folder.chmod(0o755)
        index = FileIndex("test", folder / "cache")
        known, new = folder / "known", folder / "new"
        known.write_text("x")
        new.write_text("x")
        index.enter({known: (file_state(known), "entered")})
        with read_only(folder / "cache"), caplog.at_level(logging.WARNING, "medgraft"):
            for _ in range(2):
                assert index.find([known, new]) == {known: "entered"}
                index.enter({new: (file_state(new), "lost")})
        assert index.find([known, new]) == {known: "entered"}
    assert ["attempt to write a readonly database" in message for message in caplog.messages] == [True]


def test_an_altered_entry_is_not_believed(index_folder, images):
    inspect_images(images)
    with sqlite3.connect(index_folder / module._NAME) as connection:
        changed = connection.execute("UPDATE files SET content = replace(content, 'sha256\": \"', 'sha256\": \"0')")
        assert changed.rowcount == 3
    connection.close()
    with opened_below(images[0].parent) as read:
        inspect_images(images)
    assert sorted(read) == images


def _listed(index_folder):
    connection = sqlite3.connect(index_folder / module._NAME)
    rows = connection.execute("SELECT path FROM files").fetchall()
    connection.close()
    return sorted(Path(os.fsdecode(path.partition(b"\0")[0])).name for (path,) in rows)


def test_files_that_are_gone_are_forgotten_after_a_month(index_folder, images, monkeypatch):
    inspect_images(images[:2])
    inspect_images([ImagePart(images[0], frame=0)])
    images[0].unlink()
    inspect_images(images)
    assert _listed(index_folder) == ["0.png", "0.png", "1.png", "2.png"]
    now = time.time
    monkeypatch.setattr(module.time, "time", lambda: now() + 31 * 86400)
    images[1].touch()
    inspect_images(images)
    assert _listed(index_folder) == ["1.png", "2.png"]


def test_it_can_be_switched_off(index_folder, images, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FILE_INDEX", "off")
    first = inspect_images(images)
    assert not index_folder.exists() and inspect_images(images) == first


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDGRAFT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MEDGRAFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "medgraft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "medgraft"


@pytest.fixture
def shards(tmp_path):
    """A checkpoint in two files."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, folder / "1.safetensors")
    save_file({"c": torch.zeros(0, 4), "d": torch.tensor(2.0)}, folder / "2.safetensors")
    names = {"a": "1", "b": "1", "c": "2", "d": "2"}
    index = {"weight_map": {name: f"{shard}.safetensors" for name, shard in names.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def hashed(monkeypatch):
    """The names of the checkpoint files that are hashed."""
    names = []
    plain = checkpoint._file_digests
    monkeypatch.setattr(checkpoint, "_file_digests", lambda path, **options: names.append(path.name) or plain(path, **options))
    return names


def test_checkpoints_are_hashed_once_and_changed_shards_again(index_folder, shards, hashed, monkeypatch):
    first = read_checkpoint(str(shards), BlipConfig()).digests
    assert hashed == ["1.safetensors", "2.safetensors"]
    whole = {name: tensor for shard in "12" for name, tensor in load_file(shards / f"{shard}.safetensors").items()}
    assert {name: digest.sha256 for name, digest in first.items()} == weights.tensor_digests(whole)
    in_fp32 = {name: tensor.float() for name, tensor in whole.items()}
    assert {name: digest.loaded.sha256 for name, digest in first.items()} == weights.tensor_digests(in_fp32)
    in_bf16 = {name: tensor.bfloat16() for name, tensor in whole.items()}
    assert {name: digest.loaded.rounded for name, digest in first.items()} == weights.tensor_digests(in_bf16)
    assert first["b"].loaded.layout == "torch.float32(2,)"
    assert read_checkpoint(str(shards), BlipConfig()).digests == first and len(hashed) == 2
    time.sleep(0.02)
    save_file({"c": torch.zeros(0, 4), "d": torch.tensor(3.0)}, shards / "2.safetensors")
    second = read_checkpoint(str(shards), BlipConfig()).digests
    assert [name for name in first if second[name] != first[name]] == ["d"]
    assert hashed[2:] == ["2.safetensors"]
    monkeypatch.setenv("MEDGRAFT_FILE_INDEX", "off")
    assert read_checkpoint(str(shards), BlipConfig()).digests["d"].sha256 == weights.tensor_digest(torch.tensor(3.0))


def test_a_second_run_opens_no_image_and_hashes_no_checkpoint(
    index_folder, blip_folder, phantoms_folder, plugins, tmp_path, monkeypatch, hashed
):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path / "features"))
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy="encoder-frozen", data=f"roco:{phantoms_folder}",
        overrides=["train.max_steps=2", "train.per_device_train_batch_size=4"],
    )  # fmt: skip

    def run(name):
        with opened_below(phantoms_folder) as read:
            record = execute(config, tmp_path / name, plugins=plugins, evaluate=False).record
        return record, {path for path in read if path.suffix == ".jpg"}

    first, read = run("a")
    assert len(read) == sum(first.images.values()) and hashed == ["model.safetensors"]
    second, read = run("b")
    assert not read and len(hashed) == 1
    assert (second.data_fingerprint, second.base_fingerprint) == (first.data_fingerprint, first.base_fingerprint)
    assert second.train_loss == first.train_loss


@pytest.mark.parametrize("tensor", [
    torch.arange(40_000, dtype=torch.float32).reshape(200, 200), torch.arange(31, dtype=torch.uint8),
    torch.arange(4099, dtype=torch.float32).bfloat16()[1:], torch.tensor(1.5), torch.arange(12.0).reshape(3, 4).t(),
])  # fmt: skip
def test_the_checksum_sees_every_change_of_one_number(tensor):
    before = weights.tensor_checksum(tensor)
    assert weights.tensor_checksum(tensor.clone()) == before
    for place in range(0, tensor.numel(), max(tensor.numel() // 50, 1)):
        other = tensor.clone().contiguous()
        other.view(-1)[place] += 1 if tensor.dtype == torch.uint8 else other.view(-1)[place].abs() + 1
        assert weights.tensor_checksum(other) != before, place
    assert weights.tensor_checksum(tensor.reshape(-1)[None]) != before  # another shape
    if tensor.numel() > 1:
        assert weights.tensor_checksum(tensor.flip(0)) != before  # the same numbers in another order
