"""Adapters in lmms-eval: its answers are those of `medgraft.caption`; what cannot be followed is refused in one line."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import medgraft
from medgraft.plugin_api import ConfigError, DataError, GenerationConfig
from medgraft_lmms_eval.answering import answers

ROOT = Path(__file__).parents[3]
ADAPTER = ROOT / "adapters/blip-nano-lora"
TEXTS = ["a picture of", "no evidence of", "", "there is"]
OPTIONS = {"max_new_tokens": 9, "num_beams": 2}
needs_lmms_eval = pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed: pip install lmms_eval")


@pytest.fixture(scope="module")
def adapter():
    return medgraft.load_adapter(ADAPTER, dtype="auto")


@pytest.fixture(scope="module")
def images(phantoms_folder):
    return [medgraft.open_image(path) for path in sorted((phantoms_folder / "test/radiology/images").iterdir())[:4]]


def _asked(settings, images, texts=TEXTS, visual=lambda document: [document["image"]]):
    """Requests as lmms-eval makes them of a task, and its documents."""
    documents = {"task": {"test": [{"image": image} for image in images]}}
    requests = [SimpleNamespace(args=(text, settings, visual, place, "task", "test")) for place, text in enumerate(texts)]
    return requests, documents


def test_each_request_has_its_own_image_prompt_and_settings(adapter, images):
    requests, documents = _asked({**OPTIONS, "until": None, "temperature": 0.0, "do_sample": False, "top_p": None}, images)
    others, _ = _asked({"until": ["the", ""]}, images, ["<image>\nthere is"] * 2)
    found = list(answers([*requests, *others], documents, adapter=adapter, batch_size=3))
    generation = GenerationConfig(**OPTIONS)
    for text, image, answer in zip(TEXTS, images, found, strict=False):
        assert answer == medgraft.caption(image, adapter=adapter, prompt=text or adapter.prompt, generation=generation)
    for image, answer in zip(images, found[4:], strict=False):
        assert answer == medgraft.caption(image, adapter=adapter, prompt="there is").split("the")[0]
    assert len(found) == 6 and len(set(found)) > 3


def test_samples_of_one_request_differ_whatever_the_batch_size(adapter, images):
    for batch_size in (1, 4):
        asked = _asked({"max_new_tokens": 12, "temperature": 1.5}, images[:1] * 4, ["a"] * 4)
        assert len(set(answers(*asked, adapter=adapter, batch_size=batch_size))) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_aspect_ratio": "pad"}, r"unknown key 'image_aspect_ratio'.* `--gen_kwargs NAME=` leaves"),
        ({"temperature": 0, "do_sample": True}, r"temperature: Input should be greater than 0"),
        ({"num_return_sequences": 2, "num_beams": 2}, r"one caption for each image"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(adapter, images, settings, message):
    with pytest.raises(ConfigError, match=message):
        list(answers(*_asked(settings, images), adapter=adapter, batch_size=1))
    assert list(answers(*_asked(dict.fromkeys(settings, ""), images[:1], ["a"]), adapter=adapter, batch_size=1))


@pytest.mark.parametrize(("images_of_each", "count"), [(lambda _: None, 0), (lambda document: [[document["image"]] * 2], 2)])
def test_other_numbers_of_images_are_refused(adapter, images, images_of_each, count):
    with pytest.raises(DataError, match=f"^Document 0 of task has {count} images"):
        list(answers(*_asked({}, images, visual=images_of_each), adapter=adapter, batch_size=2))


@pytest.fixture(scope="module")
def evaluator(images, tmp_path_factory):
    """Runs lmms-eval on a task of four phantoms; gives its output and the answers that it logged."""
    import datasets

    folder = tmp_path_factory.mktemp("lmms-eval")
    rows = {"image": images, "question": TEXTS, "answer": ["none"] * 4}
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(folder / "data")
    task = {
        "task": "phantoms", "dataset_path": str(folder / "data"), "dataset_kwargs": {"load_from_disk": True},
        "test_split": "test", "output_type": "generate_until", "doc_to_visual": "image", "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {**OPTIONS, "temperature": 0, "do_sample": False},
        "metric_list": [{"metric": "anls", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "tasks").mkdir()
    (folder / "tasks/phantoms.yaml").write_text(json.dumps(task))
    (folder / "tasks/choices.yaml").write_text(
        json.dumps(task | {"task": "choices", "output_type": "loglikelihood", "generation_kwargs": None})
    )
    package = tomllib.loads((ROOT / "plugins/medgraft-lmms-eval/pyproject.toml").read_text())["project"]
    points = package["entry-points"]["lmms_eval.models"].items()
    installed = folder / "site/medgraft_lmms_eval-0.1.0.dist-info"  # as pip installs it
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package['name']}\nVersion: {package['version']}\n")
    (installed / "entry_points.txt").write_text(
        "[lmms_eval.models]\n" + "".join(f"{name} = {target}\n" for name, target in points)
    )
    paths = [str(installed.parent), *sys.path]

    def run(*options):
        done = subprocess.run(
            [sys.executable, "-m", "lmms_eval", "--model", "medgraft", "--include_path", str(folder / "tasks"), *options,
             "--log_samples", "--output_path", str(folder / "out")],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(folder)},
        )  # fmt: skip
        return done.stdout + done.stderr, folder / "out"

    return run


@needs_lmms_eval
@pytest.mark.slow
def test_lmms_eval_logs_the_answers_of_medgraft(evaluator, adapter, images):
    output, folder = evaluator("--model_args", f"adapter={ADAPTER},base=blip-nano,batch_size=3", "--tasks", "phantoms")
    (logged,) = folder.rglob("*_samples_phantoms.jsonl")
    samples = [json.loads(line) for line in logged.read_text().splitlines()]
    generation = GenerationConfig(**OPTIONS)
    wanted = [
        medgraft.caption(image, adapter=adapter, prompt=text or adapter.prompt, generation=generation)
        for image, text in zip(images, TEXTS, strict=True)
    ]
    assert [sample["filtered_resps"] for sample in samples] == wanted, output


@needs_lmms_eval
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "choices"], "medgraft generates answers, and this task has requests of loglikelihood"),
        (["--tasks", "phantoms", "--device", "cuda:1"], "Device cuda:1 was asked for, and accelerate has chosen cpu"),
        (["--tasks", "phantoms", "--batch_size", "auto"], "--batch_size auto is no number of images"),
    ],
)
def test_what_lmms_eval_asks_in_vain_is_one_line(evaluator, options, message):
    output, _ = evaluator("--model_args", f"adapter={ADAPTER}", *options)
    assert f"Error during evaluation: {message}" in output
