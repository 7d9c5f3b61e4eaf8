"""A finished run trained further with --resume: where its state was kept it ends where a longer run would have ended."""

import json
from itertools import chain

import pytest

from medgraft.adapter.locating import locate_adapter
from medgraft.benchmark import execute, read_record, run_suite
from medgraft.benchmark.run_folder import CHECKPOINTS
from medgraft.cli.main import main
from medgraft.config import SuiteConfig, run_config
from medgraft.errors import AdapterError, TrainingError

ONE = ("train.per_device_train_batch_size=2", "train.bf16=false", "generation.max_new_tokens=4")
CONSTANT = ("train.lr_scheduler_type=constant", "train.warmup_steps=0")


@pytest.fixture
def words(blip_folder, phantoms_folder):
    """The command of a run of two epochs, three steps each."""
    shown = chain.from_iterable(("--set", override) for override in (*ONE, *CONSTANT))
    return [
        "train", "--backbone", f"blip:{blip_folder}", "--strategy", "lora", "--data", f"roco:{phantoms_folder}",
        "--max-images", "6", "--epochs", "2", "--no-eval", *shown,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_epochs(words, tmp_path, capsys, logged):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert main([*words, "--out", str(out)]) == 0
    assert main([*words, "--out", str(out), "--resume"]) == 2
    assert "has trained 6 steps (2 epochs), which is all that was asked for. Ask for more" in capsys.readouterr().err
    with logged() as lines:
        assert main(["train", "--out", str(out), "--resume", "--epochs", "4", "--no-eval"]) == 0
    assert any("resumed at step 6 of what were 6 steps; the learning rate now follows" in line for line in lines)
    assert main([*words, "--out", str(whole), "--epochs", "4"]) == 0
    records = [read_record(folder / "record.json") for folder in (out, whole)]
    assert len(records[0].train_loss) == 12 and records[0].train_loss == records[1].train_loss
    assert records[0].run_id == records[1].run_id
    weights = [locate_adapter(folder) / "adapter_model.safetensors" for folder in (out, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    training = json.loads((locate_adapter(out) / "medgraft.json").read_text())["training"]
    assert (training["steps"], training["epochs"]) == (12, 4)
    assert sorted(path.name for path in (out / CHECKPOINTS).iterdir()) == ["checkpoint-12", "finished"]
    assert main(["train", "--out", str(out), "--resume", "--epochs", "5", "--seed", "4"]) == 2
    assert "was made with other settings or data" in capsys.readouterr().err


@pytest.fixture
def config(blip_folder, phantoms_folder):
    def get(*overrides):
        return run_config(
            backbone=f"blip:{blip_folder}", strategy="bitfit", data=f"roco:{phantoms_folder}", max_images=6,
            overrides=["train.max_steps=2", *ONE, *overrides],
        )  # fmt: skip

    return get


def test_without_its_state_a_run_says_how_to_go_on(config, tmp_path, plugins):
    execute(config("train.save_final_state=false"), tmp_path, plugins=plugins, evaluate=False)
    assert not (tmp_path / CHECKPOINTS).exists()
    with pytest.raises(
        AdapterError, match=r"is finished, and its optimiser state was not kept.* start from its weights: --from"
    ):
        execute(config("train.max_steps=4"), tmp_path, plugins=plugins, resume=True)
    with pytest.raises(AdapterError, match="already holds an adapter"):
        execute(config(), tmp_path, plugins=plugins)


def test_a_run_killed_while_its_captions_are_scored_is_finished_without_training(config, tmp_path, plugins, monkeypatch):
    from medgraft.benchmark import run

    def power_cut(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "_score", power_cut)
        execute(config("train.save_final_state=false"), tmp_path, plugins=plugins)
    weights = (locate_adapter(tmp_path) / "trained_tensors.safetensors").read_bytes()
    with pytest.raises(AdapterError, match="has trained 2 steps"):
        execute(config("train.max_steps=1"), tmp_path, plugins=plugins, resume=True)
    record = execute(config("train.save_final_state=false"), tmp_path, plugins=plugins, resume=True).record
    assert len(record.train_loss) == record.steps == 2 and record.metrics["cider"] >= 0
    assert (locate_adapter(tmp_path) / "trained_tensors.safetensors").read_bytes() == weights
    assert not (tmp_path / CHECKPOINTS).exists()


def test_other_data_is_no_resumption(config, tmp_path, plugins, phantoms_folder):
    import shutil

    shutil.copytree(phantoms_folder, tmp_path / "data")
    changed = config()
    data = changed.data.model_copy(update={"path": str(tmp_path / "data")})
    changed = changed.model_copy(update={"data": data})
    execute(changed, tmp_path / "out", plugins=plugins, evaluate=False)
    captions = tmp_path / "data/train/radiology/captions.txt"
    captions.write_text(captions.read_text().replace("\t ", "\t a ", 1))
    longer = changed.model_copy(update={"train": changed.train.model_copy(update={"max_steps": 4})})
    with pytest.raises(TrainingError, match="was made with other settings or data"):
        execute(longer, tmp_path / "out", plugins=plugins, resume=True)


def test_no_record_no_settings(tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path), "--resume", "--epochs", "4"]) == 2
    assert "holds no run whose settings could be used. Repeat the command" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("keeps", "left"), [("auto", 0), (True, 1)])
def test_suites_keep_states_only_when_told_to(keeps, left, config, tmp_path, plugins):
    one = config()
    train = one.train.model_copy(update={"save_final_state": keeps})
    suite = SuiteConfig(
        name="s", backbones=(one.backbone,), strategies=("bitfit",), data=(one.data,), train=train, metrics=("bleu",)
    )
    run_suite(suite, tmp_path, plugins=plugins)
    assert len(list(tmp_path.glob(f"runs/*/{CHECKPOINTS}/checkpoint-2"))) == left
