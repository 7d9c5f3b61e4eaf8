"""Packages are written whole or not at all, and say nothing of the machine that wrote them."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from medgraft.adapter import Manifest, locate_adapter, read_manifest, update_manifest, whole_folder, write_package
from medgraft.adapter.base_name import hub_id, located_base, public_base, public_options
from medgraft.adapter.contents import check_bytes, read_contents
from medgraft.adapter.saving import ADAPTER_CONFIG, TENSORS
from medgraft.adapter.whole_folder import replacing
from medgraft.benchmark.run_folder import replace_package
from medgraft.errors import AdapterError
from medgraft.strategies import Strategy

FILES = {"README.md", "medgraft.json", TENSORS}


def _manifest(number, backbone="blip:./weights"):
    training = {
        "steps": 1, "seconds": 1.0, "images": 2, "learning_rate": 0.1, "hardware": "a CPU", "in_place": 1,
        "trainable_parameters": 1, "parts": ["text"], "model_class": "BlipForConditionalGeneration",
    }  # fmt: skip
    return Manifest(
        backbone=backbone, base_fingerprint="0" * 64, strategy="full", strategy_settings=Strategy(), data={"name": "d"},
        prompt="", max_text_tokens=8, bf16=False, seed=number, training=training, metrics={}, evaluation={}, versions={},
        files={},
    )  # fmt: skip


def _writer(number, size=1):
    def write_files(folder):
        save_file({"x": torch.full((size,), float(number))}, folder / TENSORS)
        return (TENSORS,)

    return write_files


def _number(folder):
    """The number that manifest, weights and card of a whole package have; fails for anything else."""
    manifest = read_manifest(folder)
    check_bytes(read_contents(folder))
    number = manifest.seed
    assert set(load_file(folder / TENSORS)["x"].tolist()) == {number}
    assert f"seed {number}.\n" in (folder / "README.md").read_text()
    return number


def _hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def _write_for_ever(out, written):
    """Packages with the numbers after `written`, each twice, as a run does that adds its scores."""
    while True:
        manifest = replace_package(out, _manifest(written.value + 1), _writer(written.value + 1, 1_000_000))
        update_manifest(out / "adapter", manifest)
        written.value += 1


@pytest.mark.parametrize("rounds", [8, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_any_moment_it_is_the_old_package_or_the_new(rounds, exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(whole_folder, "_exchange", lambda one, other: False)
    context, dice = multiprocessing.get_context("fork"), random.Random(rounds)
    out, written, unfinished = tmp_path / "out", context.Value("i", 0, lock=False), 0
    for number in range(rounds):
        if number % 4 == 0:  # over the package of an earlier version, in the run's own folder
            shutil.rmtree(out, ignore_errors=True)
            write_package(out, _manifest(written.value), _writer(written.value))
            (out / "notes.txt").write_text("mine")
        before = written.value
        process = context.Process(target=_write_for_ever, args=(out, written))
        process.start()
        while written.value < before + number % 2:
            assert not exchange or locate_adapter(out).is_dir()  # readers always find one
        time.sleep(dice.random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        package = locate_adapter(out)
        assert _number(package) in (written.value, written.value + 1)
        assert package == out or {path.name for path in package.iterdir()} == FILES
        assert (out / "notes.txt").read_text() == "mine"
        unfinished += bool(_hidden(out))
    assert unfinished > rounds / 4  # it was killed while it wrote
    replace_package(out, _manifest(-1), _writer(-1))
    assert _number(locate_adapter(out)) == -1
    assert sorted(path.name for path in out.iterdir()) == ["adapter", "notes.txt"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed"])
def test_what_fails_leaves_the_old_package(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(whole_folder, "_exchange", lambda one, other: False)
    folder = tmp_path / "adapter"
    write_package(folder, _manifest(1), _writer(1))

    def full_disk(new):
        _writer(2)(new)
        raise OSError(28, "No space left on device")

    with pytest.raises(AdapterError, match=r"cannot be written to .*the disk is full\. What was there is unchanged\."):
        write_package(folder, _manifest(2), full_disk)
    with pytest.raises(ZeroDivisionError):
        write_package(folder, _manifest(2), lambda new: 1 // 0)
    assert _number(folder) == 1 and not _hidden(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="cannot be written to"):
        write_package(tmp_path / "file" / "adapter", _manifest(1), _writer(1))
    with pytest.raises(AdapterError, match="cannot be written to"):
        write_package(tmp_path / "file", _manifest(1), _writer(1))
    assert (tmp_path / "file").read_text() == "" and not _hidden(tmp_path)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed"])
def test_files_of_others_stay_and_those_of_the_old_package_go(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(whole_folder, "_exchange", lambda one, other: False)
    folder = tmp_path / "adapter"

    def with_tokenizer(new):
        (new / "tokenizer.json").write_text("{}")
        (new / ADAPTER_CONFIG).write_text("{}")
        return (*_writer(1)(new), "tokenizer.json", ADAPTER_CONFIG)

    write_package(folder, _manifest(1), with_tokenizer)
    (folder / "mine").mkdir()
    (folder / "mine/notes.txt").write_text("mine")
    (folder / "link").symlink_to("nowhere")
    (tmp_path / "other").symlink_to(folder)
    write_package(tmp_path / "other", _manifest(2), _writer(2))
    assert (tmp_path / "other").is_symlink() and not _hidden(tmp_path)
    assert {path.name for path in folder.iterdir()} == FILES | {"mine", "link"}
    assert (folder / "mine/notes.txt").read_text() == "mine" and _number(folder) == 2
    assert update_manifest(folder, read_manifest(folder).model_copy(update={"seed": 2})).files.keys() == {TENSORS}


def test_a_folder_left_aside_is_found_and_put_back(tmp_path):
    folder = tmp_path / "run/adapter"
    write_package(folder, _manifest(1), _writer(1))
    aside = folder.with_name(".adapter.medgraft-old-1")
    folder.rename(aside)  # where a process that cannot exchange folders died
    assert locate_adapter(tmp_path / "run") == locate_adapter(folder) == aside
    with pytest.raises(ZeroDivisionError), replacing(folder, ()):
        raise ZeroDivisionError
    assert _number(folder) == 1 and not _hidden(folder.parent)


@pytest.mark.parametrize(
    ("backbone", "public", "hub"),
    [
        ("blip-nano", "blip-nano", None),
        ("blip:Salesforce/blip-base", "blip:Salesforce/blip-base", "Salesforce/blip-base"),
        ("blip:/home/jane/models/blip", "blip:./blip", None),
        ("blip:/home/jane/models/blip/", "blip:./blip", None),
        ("blip:~/models/blip", "blip:./blip", None),
        ("blip:here/blip", "blip:./blip", None),
        ("blip:./here/../other", "blip:./other", None),
        ("blip:./blip", "blip:./blip", None),
        ("git:/c/hub/models--microsoft--git-base/snapshots/0a1b2c/", "git:microsoft/git-base", "microsoft/git-base"),
    ],
)  # fmt: skip
def test_a_base_is_named_without_folders(backbone, public, hub, tmp_path, monkeypatch):
    (tmp_path / "here/blip").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert (public_base(backbone), hub_id(backbone)) == (public, hub)
    assert public_base(public) == public
    assert write_package(tmp_path / "p", _manifest(1, backbone), _writer(1)).backbone == public


def test_options_of_readers_name_no_folder_outside_the_data():
    options = {
        "images": "/data/jane/png", "groups": "../jane/groups.csv", "train": "~/t.csv", "caption": "text", "delimiter": "/",
        "test_images": "png/test", "count": 3, "config": "..",
    }  # fmt: skip
    assert public_options(options) == options | {"images": "png", "groups": "groups.csv", "train": "t.csv"}


def test_the_record_beside_a_package_says_where_the_base_is(tmp_path):
    folder, base = tmp_path / "run/adapter", tmp_path / "models/weights"
    base.mkdir(parents=True)
    manifest = write_package(folder, _manifest(1, f"blip:{base}"), _writer(1))
    missing = r"blip from a folder called weights, which is not here: add --backbone blip:FOLDER .* with weights 000000000000"
    record = {"config": {"backbone": f"blip:{base}"}, "base_fingerprint": "0" * 64}
    for other in (None, "{", "[" * 100_000, "[1]", json.dumps(record | {"base_fingerprint": "1"})):
        if other is not None:
            (tmp_path / "run/record.json").write_text(other)
        with pytest.raises(AdapterError, match=missing):
            located_base(folder, manifest)
    (tmp_path / "run/record.json").write_text(json.dumps(record))
    assert located_base(folder, manifest) == f"blip:{base}"
    base.rename(tmp_path / "models/moved")
    with pytest.raises(AdapterError, match=missing):
        located_base(folder, manifest)
    hub = write_package(folder, _manifest(1, "blip:Salesforce/x"), _writer(1))
    assert located_base(folder, hub) == "blip:Salesforce/x"


def test_the_base_in_the_working_folder_is_taken(tmp_path, monkeypatch):
    manifest = write_package(tmp_path / "adapter", _manifest(1, "blip:/home/jane/weights"), _writer(1))
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    assert located_base(tmp_path / "adapter", manifest) == "blip:./weights"
