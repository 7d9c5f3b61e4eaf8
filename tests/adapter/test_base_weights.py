"""An adapter is loaded on the weights that it was trained on; on others if the user says so, and then it says what differs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BlipForConditionalGeneration

import medgraft
from medgraft.adapter.locating import locate_adapter
from medgraft.backbones.blip import BlipBackbone
from medgraft.benchmark import execute
from medgraft.cli.main import main
from medgraft.config import run_config
from medgraft.errors import AdapterError
from medgraft.plugin import PluginManager

_WEIGHTS, _BIAS = "model.safetensors", "vision_model.post_layernorm.bias"
_HEAD = "text_decoder.cls.predictions.decoder.weight"


@pytest.fixture(scope="module")
def base(tiny_folder):
    return tiny_folder("blip")[1]


@pytest.fixture(scope="module")
def adapter(base, phantoms_folder, tmp_path_factory):
    """A LoRA package on `base`."""
    config = run_config(
        backbone=f"blip:{base}", strategy="lora", data=f"roco:{phantoms_folder}", max_images=8, overrides=["train.max_steps=1"]
    )
    out = tmp_path_factory.mktemp("lora") / "out"
    execute(config, out, plugins=PluginManager(), evaluate=False, checkpoints=False)
    return locate_adapter(out)


def _base(base, folder, change):
    """A copy of `base` with other tensors."""
    shutil.copytree(base, folder)
    save_file(change(load_file(folder / _WEIGHTS)), folder / _WEIGHTS, {"format": "pt"})
    return f"blip:{folder}"


def _with_manifest(adapter, folder, **changes):
    """A copy of the package with another manifest."""
    shutil.copytree(adapter, folder)
    path = folder / "medgraft.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}))
    return folder


@pytest.mark.parametrize(("change", "difference"), [
    (lambda t: t | {_BIAS: t[_BIAS] + 1}, rf"1 of \d+ tensors differ, such as {_BIAS}"),
    (lambda t: {name: tensor + 1 for name, tensor in t.items()}, r"(\d+) of \1 tensors differ, such as [\w.]+, [\w.]+"),
    (lambda t: {name: tensor.bfloat16() for name, tensor in t.items()},
     r"\d+ of \d+ tensors differ, the values differ only by rounding to bf16"),
    (lambda t: {name: tensor.half() for name, tensor in t.items()}, r"\d+ of \d+ tensors differ, such as "),
    (lambda t: t | {_HEAD: t["text_decoder.bert.embeddings.word_embeddings.weight"] + 1}, r"(\d+) tensors instead of \d+"),
])  # fmt: skip
def test_another_base_is_refused_or_used_with_a_warning(change, difference, adapter, base, tmp_path, logged):
    other = _base(base, tmp_path / "other", change)
    asked = r"was trained on another base: it wants blip:\S+ with weights [0-9a-f]{12}, but \S+ has [0-9a-f]{12}: "
    with pytest.raises(
        AdapterError, match=rf"{asked}{difference}.*Pass the right one with --backbone NAME:SOURCE, or use this"
    ):
        medgraft.load_adapter(adapter, backbone=other)
    with logged() as lines:
        loaded = medgraft.load_adapter(adapter, backbone=other, allow_base_mismatch=True)
    assert len(lines) == 1 and "It is used all the same" in lines[0]
    assert loaded.backbone.source == str(tmp_path / "other")
    with logged() as lines:
        medgraft.load_adapter(adapter, backbone=f"blip:{base}", allow_base_mismatch=True)
    assert not lines


def test_another_file_layout_is_the_same_base(adapter, base, tmp_path):
    shutil.copytree(base, tmp_path / "moved", ignore=shutil.ignore_patterns(_WEIGHTS))
    torch.save(BlipForConditionalGeneration.from_pretrained(base).state_dict(), tmp_path / "moved" / "pytorch_model.bin")
    first, second = (medgraft.load_adapter(adapter, backbone=f"blip:{folder}") for folder in (base, tmp_path / "moved"))
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_base_of_another_size_is_refused_whatever_is_allowed(adapter, blip_folder):
    with pytest.raises(AdapterError, match=r"does not fit"):
        medgraft.load_adapter(adapter, backbone=f"blip:{blip_folder}", allow_base_mismatch=True)


def test_manifests_of_earlier_versions(adapter, base, tmp_path):
    """Their fingerprint is of the tensors as they are stored, so of the dtype and of what the model ignores too."""
    stored = _base(base, tmp_path / "stored", lambda t: {"unused": torch.ones(1), **{n: v.bfloat16() for n, v in t.items()}})
    former = BlipBackbone.former_fingerprint(str(tmp_path / "stored"))
    assert former != BlipBackbone.fingerprint(str(tmp_path / "stored"))
    old = _with_manifest(adapter, tmp_path / "old", base_fingerprint=former, base_tensors=None)
    medgraft.load_adapter(old, backbone=stored)
    with pytest.raises(AdapterError, match=r"was trained on another base: .* does not say how they differ"):
        medgraft.load_adapter(old, backbone=f"blip:{base}")


def test_on_the_command_line(adapter, base, phantoms_folder, tmp_path, capsys):
    other = _base(base, tmp_path / "other", lambda t: t | {_BIAS: t[_BIAS] + 1})
    image = str(next(phantoms_folder.rglob("*.jpg")))
    command = ["caption", image, "--adapter", str(adapter), "--backbone", other, "--max-new-tokens", "2"]
    assert main(command) == 2
    assert "or use this one with --allow-base-mismatch" in capsys.readouterr().err
    assert main([*command, "--allow-base-mismatch"]) == 0
    assert _BIAS in capsys.readouterr().err
