"""What trackers get of a run, read from the files that they write; a tracker that is not there is one line."""

import json
import os
from importlib.util import find_spec

import pytest

from medgraft.benchmark import execute
from medgraft.cli.main import main
from medgraft.config import run_config
from medgraft.training.trackers import _environment


@pytest.fixture
def run(blip_folder, phantoms_folder, plugins):
    def get(out, tracker):
        settings = {
            "max_steps": 5, "per_device_train_batch_size": 4, "eval_steps": 2, "best_by": "rouge_l", "logging_steps": 2,
            "report_to": tracker,
        }  # fmt: skip
        config = run_config(
            backbone=f"blip:{blip_folder}", strategy="lora", data=f"roco:{phantoms_folder}", max_images=8,
            overrides=["generation.max_new_tokens=6", *(f"train.{key}={value}" for key, value in settings.items())],
        )  # fmt: skip
        before = dict(os.environ)
        record = execute(config, out, plugins=plugins, evaluate=False).record
        assert dict(os.environ) == before
        return record

    return get


def _check(scalars, record):
    """`scalars(name)` are the (step, value) that a tracker has, under the name that the Trainer uses."""
    losses = record.train_loss
    means = [(1, losses[0]), (2, losses[1]), (4, (losses[2] + losses[3]) / 2), (5, losses[4])]
    assert [step for step, _ in scalars("loss")] == [1, 2, 4, 5]
    assert [value for _, value in scalars("loss")] == pytest.approx([value for _, value in means], rel=1e-5)
    assert [step for step, _ in scalars("learning_rate")] == [1, 2, 4, 5]
    assert [value for _, value in scalars("eval_loss")] == pytest.approx([value for _, value in record.validation_loss])
    assert [(step, pytest.approx(value)) for step, value in scalars("eval_rouge_l")] == list(record.chosen.scores)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_tensorboard(own, run, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    if own:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    record = run(tmp_path / "out", "tensorboard")
    found = events.EventAccumulator(str(tmp_path / "mine/out" if own else tmp_path / "out/logs"))
    found.Reload()

    def scalars(name):
        tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
        return [(event.step, event.value) for event in found.Scalars(tag)]

    _check(scalars, record)
    (config,) = found.Tensors("model_config/text_summary")
    settings = json.loads(config.tensor_proto.string_val[0])
    assert settings["strategy"] == "lora" and settings["train.max_steps"] == 5
    assert not list((tmp_path / "out/.medgraft-checkpoints").rglob("events*"))


@pytest.mark.slow
def test_mlflow(run, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    record = run(tmp_path / "suite/runs/out", "mlflow")
    with _environment(tmp_path / "suite/runs/out"):
        client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        (found,) = client.search_runs([client.get_experiment_by_name("suite").experiment_id])
        _check(lambda name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)], record)
    assert found.info.run_name == "out" and found.info.status == "FINISHED"
    assert found.data.params["strategy"] == "lora" and found.data.params["train.max_steps"] == "5"
    assert not mlflow.is_tracking_uri_set() and mlflow.active_run() is None


@pytest.mark.parametrize(
    ("tracker", "told"),
    [
        ("tensorbord", "is no tracker of transformers. Did you mean 'tensorboard'"),
        ("swanlab", "names 'swanlab', but swanlab is not installed. Install it (pip install swanlab), or leave it out."),
        ("mlflow", "names 'mlflow', but mlflow is not installed. Install it (pip install mlflow), or leave it out."),
        ("comet_ml", "which cannot be used here: CometCallback requires comet-ml"),
    ],
)
@pytest.mark.parametrize("command", ["train", "bench"])
def test_a_tracker_that_is_not_there_is_one_line(command, tracker, told, tmp_path, capsys):
    if find_spec(tracker):
        pytest.skip(f"{tracker} is installed")
    (tmp_path / "suite.toml").write_text('name = "s"\nbackbones = ["blip:none"]\nstrategies = ["lora"]\ndata = "roco:none"\n')
    named = ["--backbone", "blip:none", "--strategy", "lora", "--data", "roco:none"]
    words = ["train", *named] if command == "train" else ["bench", str(tmp_path / "suite.toml")]
    assert main([*words, "--out", str(tmp_path / "out"), "-q", "--set", f"train.report_to={tracker}"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert told in error
