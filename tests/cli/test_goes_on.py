"""Captioning that goes on: unreadable images, folders, files that grow, interruptions, and settings that adapters keep."""

import json

import pytest
from PIL import Image

import medgraft
from medgraft import captioning, data
from medgraft.cli.main import main
from medgraft.config import GenerationConfig
from medgraft.errors import ConfigError
from medgraft.inference import Inference


@pytest.fixture
def folder(tmp_path):
    """Three images and two that are none, one of them below."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "c.png", "more/d.PNG")):
        Image.linear_gradient("L").rotate(90 * number).resize((90, 50)).save(folder / name)
    (folder / "b.png").write_bytes(b"no image")
    (folder / "more" / "e.jpg").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image either")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.fixture
def model(blip_folder):
    return ["--backbone", f"blip:{blip_folder}", "--max-new-tokens", "4"]


GOOD, BAD = ["a.png", "c.png", "more/d.PNG"], ["b.png", "more/e.jpg"]


def test_a_folder_with_bad_images_is_captioned(folder, model, tmp_path, capsys):
    out = tmp_path / "new" / "captions.json"
    assert main(["caption", str(folder), *model, "--json", "--out", str(out)]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert list(found["captions"]) == [str(folder / name) for name in GOOD]
    assert list(found["failed"]) == [str(folder / name) for name in BAD]
    assert json.loads(out.read_text()) == found["captions"]
    assert found["generation"] == GenerationConfig(max_new_tokens=4).model_dump()
    alone = medgraft.caption([folder / name for name in GOOD], backbone=model[1], generation=GenerationConfig(max_new_tokens=4))
    assert list(found["captions"].values()) == alone
    assert "2 images failed:" in printed.err and all(reason in printed.err for reason in found["failed"].values())
    assert main(["caption", str(folder), *model]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{name}: {text}" for name, text in found["captions"].items()]
    assert main(["caption", str(folder / "a.png"), *model, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["b.png"], "b.png cannot be read as an image"),
        (["b.png", "more/e.jpg", "none.png"], "All 3 images failed, such as: "),
        (["empty"], "has no image files, by their endings (.bmp, "),
    ],
)
def test_if_nothing_can_be_captioned_it_is_an_error(folder, model, capsys, names, message):
    (folder / "empty").mkdir()
    for command in ("caption", "explain"):
        assert main([command, *(str(folder / name) for name in names), *model]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_explain_goes_on_too(folder, model, capsys):
    images = [str(folder / name) for name in ("a.png", "b.png", "c.png")]
    assert main(["explain", *images, *model, "--caption", "a mass", "--json"]) == 1
    printed = capsys.readouterr()
    assert list(json.loads(printed.out)) == [images[0], images[2]] and "1 image failed:\n" in printed.err
    assert main(["explain", images[0], *model, "--set", "generation.min_new_tokens=2", "--json"]) == 0
    ((found,),) = json.loads(capsys.readouterr().out).values()
    assert found["generation"]["min_new_tokens"] == 2


def test_several_captions_of_each_image(folder, model, capsys):
    images = [str(folder / name) for name in GOOD[:2]]
    settings = [
        "--set",
        "generation.do_sample=True",
        "--set",
        "generation.num_return_sequences=3",
        "--set",
        "generation.seed=5",
    ]
    assert main(["caption", *images, *model, *settings, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(captions) for captions in found["captions"].values()] == [3, 3]
    assert found["generation"] | {"do_sample": True, "seed": 5} == found["generation"]
    generation = GenerationConfig(**found["generation"])
    each = list(medgraft.caption_each([*images, folder / "b.png"], backbone=model[1], generation=generation))
    assert [list(one.captions) for one in each] == [*found["captions"].values(), []] and "b.png" in each[2].problem
    assert main(["caption", *images, *model, *settings]) == 0
    lines = [f"{image}: {text}" for image, texts in found["captions"].items() for text in texts]
    assert capsys.readouterr().out.splitlines() == lines
    with pytest.raises(ConfigError, match="caption_each gives several"):
        medgraft.caption(images, backbone=model[1], generation=generation)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("generation.temperature=0.5", "generation: temperature=0.5 acts on sampling alone"),
        ("generation.num_beam=2", "unknown key 'num_beam'. Did you mean 'num_beams'"),
        ("train.seed=2", "unknown section 'train'"),
    ],
)
@pytest.mark.parametrize("command", ["caption", "explain", "evaluate"])
def test_wrong_settings_are_one_line(command, setting, message, folder, phantoms_folder, model, capsys):
    images = ["--data", f"roco:{phantoms_folder}"] if command == "evaluate" else [str(folder / "a.png")]
    assert main([command, *images, *model, "--set", setting]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_who_stops_it_keeps_what_was_made(folder, model, tmp_path, capsys, monkeypatch):
    whole = Inference.batches

    def stopped(self, images, generation):
        yield next(whole(self, images[:2], generation))
        raise KeyboardInterrupt

    monkeypatch.setattr(Inference, "batches", stopped)
    out = tmp_path / "out.json"
    assert main(["caption", str(folder), *model, "--json", "--out", str(out)]) == 130
    printed = capsys.readouterr()
    assert json.loads(printed.out)["captions"] == json.loads(out.read_text()) and "Stopped after 2 of 5" in printed.err
    assert list(json.loads(out.read_text())) == [str(folder / "a.png")]


def test_a_line_says_that_most_captions_are_cut_off_or_equal(folder, model, capsys):
    images = [str(folder / "a.png")] + [str(folder / "copy" / f"{number}.png") for number in range(3)]
    (folder / "copy").mkdir()
    for image in images[1:]:
        Image.open(images[0]).save(image)
    assert main(["caption", *images, *model, "--json"]) == 0
    printed = capsys.readouterr()
    cut_off, equal = json.loads(printed.out)["warnings"]
    assert cut_off.startswith("4 of 4 generated captions were cut off at 4 tokens") and "no_repeat_ngram_size" in cut_off
    assert equal.startswith("4 of 4 generated captions are equal ('") and "train longer" in equal
    assert cut_off in printed.err and equal in printed.err


def test_an_evaluation_goes_on(phantoms_folder, model, tmp_path, capsys, monkeypatch):
    """Also after an image that was readable when the data were read."""
    gone = sorted((phantoms_folder / "test/radiology/images").iterdir())[1]

    def vanished(image):
        return data.open_image(gone.with_suffix(".none") if image == gone else image)

    monkeypatch.setattr(captioning, "open_image", vanished)
    predictions = tmp_path / "predictions.json"
    words = ["evaluate", "--data", f"roco:{phantoms_folder}", *model, "--predictions", str(predictions), "--json"]
    several = ["--set", "generation.num_beams=2", "--set", "generation.num_return_sequences=2"]
    assert main([*words, *several]) == 0
    printed = capsys.readouterr()
    found, kept = json.loads(printed.out), json.loads(predictions.read_text())
    assert found["images"] == len(kept) and gone.stem not in kept and found["generated"]["captions"] == len(kept)
    assert found["left_out"]["corrupt"] == [f"There is no image {gone.with_suffix('.none')}."]
    assert found["generation"]["num_beams"] == 2 and found["warnings"]
    assert "The first of the 2 captions of each image is scored." in printed.err
    assert "1 image left out:\n  There is no image" in printed.err


def test_settings_of_a_training_without_evaluation_are_kept(folder, blip_folder, phantoms_folder, tmp_path, capsys):
    out, image = tmp_path / "run", str(folder / "a.png")
    words = ["train", "--backbone", f"blip:{blip_folder}", "--strategy", "bitfit", "--data", f"roco:{phantoms_folder}"]
    settings = ["--set", "generation.num_beams=2", "--set", "generation.do_sample=true", "--set", "generation.top_p=0.9"]
    shorter = ["--set", "generation.max_new_tokens=5"]
    assert main([*words, "--out", str(out), "--max-steps", "1", "--max-images", "4", "--no-eval", *settings, *shorter]) == 0
    kept = {"num_beams": 2, "do_sample": True, "top_p": 0.9, "max_new_tokens": 5}
    capsys.readouterr()
    for given, changed in (
        ([], {}),
        (["--num-beams", "1", "--set", "generation.top_p=0.5"], {"num_beams": 1, "top_p": 0.5}),
        (["--set", "generation.do_sample=false"], {"do_sample": False, "top_p": 1.0}),
    ):
        assert main(["caption", image, "--adapter", str(out), *given, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["generation"] == GenerationConfig(**kept | changed).model_dump()
