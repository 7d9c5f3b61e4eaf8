"""The folder of a run: what ships lies apart, and nothing of an earlier run is left beside a new one."""

import getpass
import json
import shutil

import pytest
import torch

import medgraft
from medgraft.adapter import locate_adapter
from medgraft.benchmark import execute
from medgraft.config import run_config
from medgraft.errors import AdapterError
from medgraft.plugin import PluginManager


@pytest.fixture(scope="module")
def table(phantoms_folder, tmp_path_factory):
    """A table of phantoms whose images are named by an absolute path."""
    folder = tmp_path_factory.mktemp("jane-doe")
    images = sorted((phantoms_folder / "train/radiology/images").iterdir())[:8]
    rows = [f"{image.name},text {n},{'test' if n > 5 else 'train'}" for n, image in enumerate(images)]
    (folder / "t.csv").write_text("\n".join(["image,caption,fold", *rows]))
    return f"csv:{folder / 't.csv'}", f"data.images={images[0].parent}"


def _train(strategy, blip_folder, table, out, **options):
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy=strategy, data=table[0],
        overrides=[table[1], "data.split=fold", "train.max_steps=1", "train.bf16=false", "generation.max_new_tokens=4"],
    )  # fmt: skip
    return execute(config, out, plugins=PluginManager(), **options)


@pytest.fixture(scope="module")
def finished(blip_folder, table, tmp_path_factory):
    """The folder of a whole run of LoRA."""
    out = tmp_path_factory.mktemp("run") / "out"
    _train("lora", blip_folder, table, out)
    return out


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _as_before(out, blip_folder):
    """Move the package to where earlier versions wrote it, with the base's path in it."""
    for path in (out / "adapter").iterdir():
        path.rename(out / path.name)
    (out / "adapter").rmdir()
    manifest = json.loads((out / "medgraft.json").read_text())
    (out / "medgraft.json").write_text(json.dumps(manifest | {"backbone": f"blip:{blip_folder}"}))
    (out / "record.json").unlink()


def test_the_package_says_nothing_of_machine_and_images(finished, blip_folder, table):
    assert _names(finished) == [".medgraft-checkpoints", "adapter", "maps.json", "predictions.json", "record.json"]
    assert _names(finished / "adapter") == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "medgraft.json", "trained_on.safetensors",
    ]  # fmt: skip
    content = b"".join(path.read_bytes() for path in (finished / "adapter").iterdir())
    secrets = [str(blip_folder.parent), "jane-doe", "t.csv", "PHANTOM_", "text 3", "/home", "/tmp", str(finished.parent)]
    user = getpass.getuser()
    assert [word for word in (*secrets, f"/{user}/") if word.encode() in content] == []
    options = json.loads((finished / "adapter/medgraft.json").read_text())["data"]["options"]
    assert options == {"images": "images", "split": "fold"}
    assert "jane-doe" in (finished / "record.json").read_text()  # which stays here


def test_it_loads_from_its_run_and_elsewhere_with_its_base_named(finished, blip_folder, tmp_path):
    here = medgraft.load_adapter(finished)
    shutil.copytree(finished / "adapter", tmp_path / "sent")
    with pytest.raises(AdapterError, match=r"from a folder called weights, which is not here: add --backbone blip:FOLDER"):
        medgraft.load_adapter(tmp_path / "sent")
    there = medgraft.load_adapter(tmp_path / "sent", backbone=f"blip:{blip_folder}")
    one, other = here.model.state_dict(), there.model.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_options_that_a_package_names_in_short_are_not_others(finished, table, logged):
    data = medgraft.config.data_config(table[0], [table[1], "data.split=fold"], None)
    with logged() as lines:
        medgraft.evaluate(data, adapter=finished, metrics=("bleu",))
    assert not [line for line in lines if "other options" in line]


@pytest.mark.parametrize("earlier", [False, True], ids=["this version's", "an earlier version's"])
def test_nothing_of_an_overwritten_run_is_left(earlier, out, blip_folder, table):
    if earlier:
        _as_before(out, blip_folder)
        assert medgraft.load_adapter(out).manifest.strategy == "lora"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match=r"already holds an adapter\. Name another folder, or add --overwrite"):
        _train("bitfit", blip_folder, table, out)
    with pytest.raises(AdapterError, match="already holds an adapter, and this strategy trains none"):
        _train("zero-shot", blip_folder, table, out, overwrite=True)
    record = _train("bitfit", blip_folder, table, out, overwrite=True, evaluate=False).record
    assert record.strategy == "bitfit"
    assert _names(out) == [".medgraft-checkpoints", "adapter", "notes.txt", "record.json"]
    assert _names(locate_adapter(out)) == [
        "README.md", "medgraft.json", "trained_on.safetensors", "trained_tensors.safetensors",
    ]  # fmt: skip
    assert medgraft.load_adapter(out).manifest.strategy == "bitfit"


def test_a_run_that_fails_leaves_the_old_one(out, blip_folder, table):
    shutil.rmtree(out / ".medgraft-checkpoints")  # those are the new run's
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(medgraft.errors.TrainingError):
        config = run_config(
            backbone=f"blip:{blip_folder}", strategy="lora", data=table[0],
            overrides=[table[1], "train.max_steps=3", "train.learning_rate=1e30", "train.bf16=false"],
        )  # fmt: skip
        execute(config, out, plugins=PluginManager(), overwrite=True)
    assert {path: path.read_bytes() for path in before} == before


def test_results_of_others_stay(blip_folder, table, tmp_path):
    (tmp_path / "maps.json").write_text("of a town")
    _train("zero-shot", blip_folder, table, tmp_path, evaluate=False)
    assert (tmp_path / "maps.json").read_text() == "of a town"
