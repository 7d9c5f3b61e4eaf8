"""`medgraft caption` with several adapters: side by side, in 80 columns, and what a terminal must not get."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BlipForConditionalGeneration

import medgraft
from medgraft.cli.caption import _rows
from medgraft.cli.main import main
from medgraft.config import GenerationConfig


@pytest.fixture(scope="module")
def adapters(blip_folder, tmp_path_factory):
    """Two plain PEFT adapters of the same base."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("chest", "a-name-that-is-longer-than-its-column")):
        torch.manual_seed(seed)
        base = BlipForConditionalGeneration.from_pretrained(blip_folder)
        model = get_peft_model(base, LoraConfig(r=2, lora_alpha=64, target_modules=["query"], init_lora_weights=False))
        model.save_pretrained(folder / name, save_embedding_layers=False)
    return [folder / "chest", folder / "a-name-that-is-longer-than-its-column"]


def test_side_by_side(adapters, blip_folder, phantoms_folder, capsys, monkeypatch):
    monkeypatch.chdir(adapters[0].parent)
    names = [adapter.name for adapter in adapters]
    images = [str(path) for path in sorted((phantoms_folder / "test/radiology/images").iterdir())[:2]]
    words = ["--backbone", f"blip:{blip_folder}", "--max-new-tokens", "12"]
    both = ["caption", *images, "--adapter", names[0], "--adapter", names[1], *words]
    assert main([*both, "--with-base", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["captions"]
    short = GenerationConfig(max_new_tokens=12)
    for name, folder in zip(names, adapters, strict=True):
        loaded = medgraft.load_adapter(folder, backbone=f"blip:{blip_folder}")
        assert [found[image][name] for image in images] == medgraft.caption(images, adapter=loaded, generation=short)
    bare = medgraft.caption(images, backbone=f"blip:{blip_folder}", generation=short)
    assert [found[image]["base model"] for image in images] == bare
    assert list(found[images[0]]) == [*names, "base model"]

    assert main(both) == 0
    text = capsys.readouterr().out
    assert " ".join(text.split()) == " ".join(
        " ".join([image, *(part for name in names for part in (name, found[image][name]))]) for image in images
    )
    assert main(["caption", images[0], "--adapter", names[0], *words]) == 0  # one: the caption alone, as ever
    assert capsys.readouterr().out == found[images[0]][names[0]] + "\n"

    assert main([*both, "--adapter", names[0]]) == 2
    assert "two models would have this name" in capsys.readouterr().err
    assert main(["caption", images[0], "--with-base", *words]) == 2
    assert "name one with --adapter DIR" in capsys.readouterr().err


def test_names_and_captions_stand_in_two_columns():
    rows = _rows({"chest": "word " * 40, "n" * 40: "a cyst", "base model": ""}).splitlines()
    assert max(map(len, rows)) <= 80
    starts = [row.index("word") for row in rows if "word" in row]
    assert len(starts) > 2 and set(starts) == {rows[-2].index("a cyst")}
    assert rows[-3] == "  " + "n" * 40 and rows[-1] == "  base model"
