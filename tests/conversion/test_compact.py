"""Packages in few bytes: read as safely as others, shown, verified, and gone on from."""

import json
import shutil

import pytest
import torch
from changed import PLUGINS, changed_adapter, computed
from fuzz_packages import sign
from safetensors.torch import load_file, save_file

import medgraft
from medgraft.adapter import read_contents, read_manifest, read_start
from medgraft.adapter.hub import PACKAGE_FILES, HubName, _check_files
from medgraft.benchmark import execute
from medgraft.cli.main import main
from medgraft.conversion import ExtractOptions, extract_adapter, merge_adapter
from medgraft.conversion.outputs import sample_examples
from medgraft.errors import AdapterError
from medgraft.models import load_model
from medgraft.strategies import Strategy

TABLE = "text_decoder.bert.embeddings.word_embeddings.weight"
INT8, CHANGES = "adapter_model.int8.safetensors", "trained_changes.safetensors"


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """A folder with the package `small`, full fine-tuning in int8: a LoRA, a table in low rank, and other tensors whole."""
    folder, name = tmp_path_factory.mktemp("made"), f"blip:{tiny_folder('blip')[1]}"
    changed_adapter(name, "full", folder / "full")
    trained = load_file(folder / "full/trained_tensors.safetensors")
    base = load_model(name, Strategy(), plugins=PLUGINS).model.state_dict()
    moved = torch.linspace(-1, 1, base[TABLE].shape[1]).repeat(len(base[TABLE]), 1)  # rank 1, but for one row
    moved[5] *= torch.linspace(1, 2, len(moved[5]))
    trained[TABLE] = base[TABLE] + moved
    save_file(trained, folder / "full/trained_tensors.safetensors")
    sign(folder / "full")
    extract_adapter(folder / "full", folder / "small", plugins=PLUGINS, options=ExtractOptions(rank=4, dtype="int8", images=0))
    assert {INT8, CHANGES} < read_manifest(folder / "small").files.keys()
    return folder


@pytest.fixture
def small(made, tmp_path):
    """A copy of the package, with the record that names its base."""
    shutil.copyfile(made / "record.json", tmp_path / "record.json")
    return shutil.copytree(made / "small", tmp_path / "small")


def _drop(tensors):
    del tensors[f"{TABLE}::rows"]


def _huge(tensors):
    """A few bytes that stand for a matrix of 10^12 values."""
    tensors[f"{TABLE}::left"], tensors[f"{TABLE}::left::scale"] = torch.ones(10**6, 1, dtype=torch.int8), torch.ones(1, 1)
    tensors[f"{TABLE}::right"], tensors[f"{TABLE}::right::scale"] = torch.ones(1, 10**6, dtype=torch.int8), torch.ones(1, 1)
    tensors[f"{TABLE}::rows"] = torch.zeros(0, dtype=torch.int32)
    tensors[f"{TABLE}::values"] = torch.zeros(0, 10**6, dtype=torch.bfloat16)


def _set_rows(rows):
    def change(tensors):
        width = tensors[f"{TABLE}::right"].shape[1]
        tensors.pop(f"{TABLE}::values::scale", None)
        tensors[f"{TABLE}::rows"] = torch.tensor(rows)
        tensors[f"{TABLE}::values"] = torch.zeros(len(rows), width, dtype=torch.bfloat16)

    return change


def _scale(value):
    return lambda tensors: tensors[next(key for key in tensors if key.endswith("::scale"))].fill_(value)


def _no_scale(tensors):
    del tensors[next(key for key in tensors if key.endswith("::scale"))]


def _both(tensors):
    tensors[TABLE] = torch.zeros(2)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CHANGES, _drop, "make no matrix"),
        (CHANGES, _both, "make no matrix"),
        (CHANGES, _huge, "in the base"),
        (CHANGES, _set_rows([-1]), "are no rows of a matrix"),
        (CHANGES, _set_rows([3, 3]), "are no rows of a matrix"),
        (CHANGES, _set_rows([0, 10**6]), "are no rows of a matrix"),
        (CHANGES, lambda tensors: tensors.update(nothing=torch.zeros(2)), "nothing of shape .2,. does not exist in the base"),
        (CHANGES, _scale(3e38), "holds a value above a million"),
        (INT8, _scale(3e38), "holds a value above a million"),
        (CHANGES, _scale(5e5), "holds a value above a million"),  # only its product is
        (INT8, _scale(5e5), "holds a value above a million"),
        (INT8, _no_scale, "has no scale for each row or column"),
        (INT8, lambda tensors: tensors.update({"x::scale": torch.ones(1, 1)}), "x::scale is a scale of no tensor"),
        (INT8, lambda tensors: tensors.popitem(), "no scale|of no tensor|that it needs are not in it"),
    ],
)
def test_damage_is_one_line(file, change, message, small):
    tensors = load_file(small / file)
    change(tensors)
    save_file(tensors, small / file)
    sign(small)
    with pytest.raises(AdapterError, match=message) as raised:
        medgraft.load_adapter(small)
    assert "\n" not in str(raised.value)


def test_files_are_those_that_the_manifest_lists_and_ranks_those_of_the_settings(small):
    config = json.loads((small / "adapter_config.json").read_text())
    (small / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    sign(small)
    with pytest.raises(AdapterError, match=r"r is 3, but .* has the shape"):
        read_contents(small)
    (small / "adapter_config.json").write_text(json.dumps(config))
    manifest = json.loads((small / "medgraft.json").read_text())
    del manifest["files"][CHANGES]
    (small / "medgraft.json").write_text(json.dumps(manifest))
    with pytest.raises(AdapterError, match=f"{CHANGES} is not listed"):
        read_contents(small)
    (small / CHANGES).unlink()
    with pytest.raises(AdapterError, match=f"lists no trained_tensors.safetensors or {CHANGES}"):
        read_contents(small)
    assert {INT8, CHANGES} <= set(PACKAGE_FILES)
    _check_files(HubName("user/repo"), {"medgraft.json": 1, INT8: 1})


def test_it_is_shown_verified_and_compared(small, capsys):
    for words, code in ((["verify", str(small)], 0), (["diff", str(small), str(small)], 0), (["inspect", str(small)], 0)):
        assert main(["adapter", *words]) == code
    text = capsys.readouterr().out
    assert "LORA, rank 4 on" in text and "medgraft adapter extract, rank 4, dtype int8; from adapter" in text
    with (small / CHANGES).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert main(["adapter", "verify", str(small)]) == 1


def test_training_goes_on_from_it_with_all_of_its_parameters(small, phantoms_folder, tmp_path):
    examples = sample_examples(None, 2, plugins=PLUGINS)
    before = computed(small, examples)
    config = medgraft.run_config(
        data=f"roco:{phantoms_folder}", start_from=small, max_images=4,
        overrides=["train.max_steps=1", "train.learning_rate=1e-30", "train.bf16=false", "train.weight_decay=0"],
    )  # fmt: skip
    execute(config, tmp_path / "child", plugins=PLUGINS, evaluate=False, checkpoints=False)
    child = tmp_path / "child/adapter"
    assert computed(child, examples).largest_difference(before) < 1e-5
    changed = read_start(config).in_place()
    assert len(changed) == read_manifest(small).training["in_place"] > 0
    assert set(load_file(child / "trained_tensors.safetensors")) == set(changed)
    assert "from adapter" in read_manifest(child).lineage[-1].conversion


def test_it_merges_into_a_folder_that_names_no_place_of_this_machine(small, tmp_path):
    merge_adapter(small, tmp_path / "merged", plugins=PLUGINS)
    for path in (*(tmp_path / "merged").iterdir(), *small.iterdir()):
        assert str(tmp_path.parent.parent).encode() not in path.read_bytes(), path
