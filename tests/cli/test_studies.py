"""Studies of two images on the command line: trained, captioned, scored, looked at."""

import json

import numpy as np
import pytest
from PIL import Image

import medgraft
from medgraft.adapter import TrainedOn, locate_adapter
from medgraft.cli.main import main
from medgraft.config import DataConfig
from medgraft.data import load_data

SETTINGS = [
    "data.images=together", "generation.max_new_tokens=6", "train.per_device_train_batch_size=2", "saliency.maps=2",
    "forgetting.images=0", "train.max_steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """R2Gen's layout: studies of one and of two images."""
    folder, studies = tmp_path_factory.mktemp("reports"), {}
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        studies[split] = []
        for number in range(count):
            names = [f"{split}{number}-{view}.png" for view in range(1 + number % 2)]
            studies[split].append({"id": f"{split}{number}", "report": f"No nodule in {number} .", "image_path": names})
            for name in names:
                (folder / "images").mkdir(exist_ok=True)
                Image.fromarray(random.integers(0, 255, (40, 40), dtype=np.uint8)).save(folder / "images" / name)
    (folder / "annotation.json").write_text(json.dumps(studies))
    return folder


@pytest.fixture(scope="module")
def trained(reports, blip_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ["train", "--backbone", f"blip:{blip_folder}", "--strategy", "encoder-frozen", "--data", f"r2gen:{reports}"]
    assert main([*words, "--out", str(out), "--metric", "localization", *changes]) == 0
    return out


def test_a_run_on_studies_is_loaded_captioned_and_scored(trained, reports, tmp_path, capsys):
    predictions = json.loads((trained / "predictions.json").read_text())["predictions"]
    views = [str(reports / "images" / f"test1-{view}.png") for view in range(2)]
    capsys.readouterr()
    assert main(["caption", *views, "--adapter", str(trained), "--together", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["captions"] == {" + ".join(views): predictions["test1"]}
    assert medgraft.caption([tuple(views)], adapter=trained) == [predictions["test1"]]
    again = tmp_path / "again.json"
    words = ["evaluate", "--adapter", str(trained), "--data", f"r2gen:{reports}", "--predictions", str(again)]
    assert main([*words, "--set", "data.images=together"]) == 0
    assert json.loads(again.read_text()) == predictions
    assert set(json.loads((trained / "maps.json").read_text())) <= {"test0", "test1"}
    record = json.loads((trained / "record.json").read_text())
    assert record["features"]["built"] == 10 and record["images"]["train"] == 4
    data = load_data(DataConfig(name="r2gen", path=str(reports), options={"images": "together"}))
    seen = TrainedOn.read(locate_adapter(trained)).seen(data.split("train", "test"))
    assert (seen.total, seen.images) == (10, 6)


def test_other_backbones_refuse_before_they_are_loaded(reports, tiny_folder, tmp_path, capsys):
    _, folder = tiny_folder("git")
    words = ["train", "--backbone", f"git:{folder}", "--strategy", "lora", "--data", f"r2gen:{reports}", "--out", str(tmp_path)]
    assert main([*words, "--set", "data.images=together"]) == 2
    assert "GitBackbone sees one image at a time" in capsys.readouterr().err


def test_pages_say_that_a_study_has_more_images(trained, reports, blip_folder, tmp_path, capsys):
    page = tmp_path / "data.html"
    words = ["data", "inspect", f"r2gen:{reports}", "--backbone", f"blip:{blip_folder}", "--set", "data.images=together"]
    assert main([*words, "--json", "--out", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["splits"]["train"]["images"], found["images"]["images"]) == (6, 13)
    assert page.read_text().count(", the first of 2") == 4
    report = tmp_path / "report.html"
    assert main(["report", str(trained), "--format", "html", "--out", str(report)]) == 0
    assert report.read_text().replace('": ', '":').count('"count":2') == 1


def test_a_suite_refuses_before_it_begins(reports, tiny_folder, tmp_path, capsys):
    _, folder = tiny_folder("git")
    suite = tmp_path / "suite.toml"
    suite.write_text(
        f'name = "s"\nbackbones = ["git:{folder}"]\nstrategies = ["lora"]\n[data]\nname = "r2gen"\npath = "{reports}"\n'
        'options = {images = "together"}\n'
    )
    assert main(["bench", str(suite), "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    assert "GitBackbone sees one image at a time" in " ".join(capsys.readouterr().out.split())
    assert main(["bench", str(suite), "--out", str(tmp_path / "out")]) == 2
    assert "GitBackbone sees one image at a time" in capsys.readouterr().err
