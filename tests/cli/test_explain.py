"""`medgraft explain` as a user types it."""

import json

import numpy as np
import pytest
from PIL import Image

import medgraft
from medgraft.cli.main import main
from medgraft.errors import MedgraftError
from medgraft.saliency import MapOptions


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "scan.png"
    Image.linear_gradient("L").resize((90, 50)).save(path)
    return path


@pytest.fixture
def blip(blip_folder):
    return f"blip:{blip_folder}"


def test_words_are_listed_with_where_their_map_is_highest(image, blip, capsys):
    assert main(["explain", str(image), "--backbone", blip, "--caption", "a nodule in the left lung"]) == 0
    out = capsys.readouterr().out
    assert f"{image}: a nodule in the left lung\ncross-attention" in out
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line.endswith(")") and "(" in line][1:]
    assert [word for word, _ in lines] == ["a", "nodule", "in", "the", "left", "lung"]
    x, y = json.loads(lines[1][1].replace("(", "[").replace(")", "]"))
    assert 0 <= x < 90 and 0 <= y < 50
    assert "--out page.html makes a page" in out and max(map(len, out.splitlines()[1:])) <= 80


def test_json_holds_the_maps(image, blip, capsys):
    assert main(["explain", str(image), "--backbone", blip, "--caption", "a mass", "--method", "all", "--json"]) == 0
    (several,) = json.loads(capsys.readouterr().out).values()
    labels = [each["label"] for each in several]
    assert len(labels) == 5 and "rollout" in labels[1] and "gradients" in labels[2]  # and the two layers
    first = several[0]["words"][1]
    assert first["text"] == "mass" and len(first["map"]) == 4 and several[0]["view"] == [0, 0, 90, 50]
    mean = np.mean([each["words"][1]["map"] for each in several[3:]], axis=0)
    np.testing.assert_allclose(mean, first["map"], atol=1e-6)


def test_the_page_and_the_overlays(image, blip, tmp_path, capsys):
    page, folder = tmp_path / "new" / "page.html", tmp_path / "overlays"
    words = ["explain", str(image), "--backbone", blip, "--caption", "a mass", "--out", str(page), "--overlays", str(folder)]
    assert main(words) == 0
    text = page.read_text(encoding="utf-8")
    assert "Attention of the model" in text and "http" not in text.replace("http-equiv", "")
    made = sorted((folder / "scan").iterdir())
    assert [path.name for path in made] == ["00-a.png", "01-mass.png"]
    with Image.open(made[0]) as overlay:
        assert overlay.size == (90, 50)
    assert str(page) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "9"], "no layer 9; this model has 2"),
        (["--heads", "4"], "no head 4; this model has 1"),
        (["--caption", " . "], "no words to explain"),
    ],
)
def test_what_cannot_be_explained_is_one_line(image, blip, capsys, words, message):
    assert main(["explain", str(image), "--backbone", blip, "--caption", "a mass", *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


def test_missing_images_and_models_without_attention_say_so(image, blip, tmp_path, capsys):
    assert main(["explain", str(tmp_path / "none.png"), "--backbone", blip]) == 2
    assert "There is no image" in capsys.readouterr().err
    assert main(["explain", str(image), "--backbone", "openai:x", "--method", "all"]) == 2
    error = capsys.readouterr().err
    assert "plugin medgraft-api: " in error.splitlines()[0] and error.count("\n") == 2
    assert main(["explain", str(image)]) == 2
    assert "Name the model" in capsys.readouterr().err


def test_from_python(image, blip):
    found = medgraft.explain(image, backbone=blip, caption="a large mass", maps=MapOptions("rollout", layers=[1]))
    assert [word.text for word in found.maps.words] == ["a", "large", "mass"]
    heat = found.heat(2)
    assert heat.shape == (50, 90) and heat.max() == pytest.approx(1)
    assert found.overlay(2).size == found.image.size == (90, 50)
    with pytest.raises(MedgraftError, match="no method 'x'"):
        medgraft.explain(image, backbone=blip, caption="a", maps=MapOptions("x"))


def test_an_adapters_own_caption_is_explained(image, blip, phantoms_folder, tmp_path, capsys):
    out = tmp_path / "adapter"
    config = medgraft.run_config(
        backbone=blip, strategy="lora", data=f"roco:{phantoms_folder}", max_images=4,
        overrides=["train.max_steps=1", "generation.max_new_tokens=6"],
    )  # fmt: skip
    medgraft.train(config, out, progress=False)
    said = medgraft.caption([image], adapter=out)[0]
    found = medgraft.explain(image, adapter=out)
    assert found.caption == said
