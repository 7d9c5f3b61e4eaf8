"""The best weights by a score of validation captions or by the loss: kept, recorded, found again, or refused."""

import json
import shutil

import pytest

import medgraft
from medgraft.adapter import locate_adapter
from medgraft.benchmark import execute
from medgraft.cli.main import main
from medgraft.config import run_config
from medgraft.errors import ConfigError
from medgraft.training.best import Best

TOO_FAST = {
    "learning_rate": 0.3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}  # so that the last weights are not the best


@pytest.fixture(scope="module")
def config(blip_folder, phantoms_folder):
    def get(data=phantoms_folder, strategy="lora", options=(), **train):
        settings = {"max_steps": 8, "per_device_train_batch_size": 4, "dtype": "fp32", "eval_steps": 2, **train}
        return run_config(
            backbone=f"blip:{blip_folder}", strategy=strategy, data=f"roco:{data}", max_images=8,
            overrides=[*options, "generation.max_new_tokens=6", *(f"train.{key}={value}" for key, value in settings.items())],
        )  # fmt: skip

    return get


def _run(config, out, plugins, **options):
    return execute(config, out, plugins=plugins, evaluate=False, **options).record


def _weights(out):
    return (locate_adapter(out) / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("by", "rate"), [("loss", 3), ("rouge_l", 0.3)])
def test_the_adapter_is_that_of_the_best_step(by, rate, config, tmp_path, plugins):
    settings = TOO_FAST | {"learning_rate": rate, "best_by": by}
    record = _run(config(**settings), tmp_path / "whole", plugins)
    chosen, scores = record.chosen, dict(record.chosen.scores)
    assert list(scores) == [2, 4, 6, 8] and len(set(scores.values())) > 1
    best = (min if by == "loss" else max)(scores.values())
    assert (chosen.by, scores[chosen.step], chosen.value) == (by, best, best) and not chosen.stopped_early
    assert chosen.step == next(step for step, value in scores.items() if value == best) < 8
    assert by != "loss" or tuple(scores.items()) == record.validation_loss
    assert record.steps == 8 and record.phase_seconds["validation"] > 0
    _run(config(**settings, max_steps=chosen.step), tmp_path / "short", plugins)
    assert _weights(tmp_path / "short") == _weights(tmp_path / "whole")
    folder = locate_adapter(tmp_path / "whole")
    assert f"weights of step {chosen.step}, the best of 4 validations by {by}" in (folder / "README.md").read_text()
    assert json.loads((folder / "medgraft.json").read_text())["training"]["chosen"]["step"] == chosen.step


@pytest.mark.slow
def test_training_stops_where_nothing_gets_better_and_stays_so(config, tmp_path, plugins):
    """Also if it is killed before its package is written, and then resumed."""
    settings = {**TOO_FAST, "max_steps": 40, "best_by": "loss", "patience": 2, "eval_steps": 1, "max_validation_images": 3}
    record = _run(config(**settings, save_final_state="true"), tmp_path, plugins)
    assert record.chosen.stopped_early and record.steps == record.chosen.step + 2 < 40
    before = _weights(tmp_path)
    shutil.rmtree(tmp_path / "adapter")
    (tmp_path / ".medgraft-checkpoints/finished").unlink()
    again = _run(config(**settings, save_final_state="true"), tmp_path, plugins, resume=True)
    assert again.chosen == record.chosen and again.train_loss == record.train_loss and _weights(tmp_path) == before
    longer = _run(config(**{**settings, "patience": 4}), tmp_path, plugins, resume=True, overwrite=True)
    assert longer.steps > record.steps and longer.chosen.scores[: record.steps] == record.chosen.scores


@pytest.mark.parametrize("by", ["cider", "side_omitted"])
def test_the_first_of_equals_and_scores_without_a_value(by):
    best, worse = (2.0, 1.0) if by == "cider" else (1.0, 2.0)
    kept = Best(by, by != "cider", patience=2)
    kept.scores, kept.step = [(1, None), (2, worse), (3, best)], 3
    assert not kept._is_better(best) and not kept._is_better(worse) and kept._is_better(2 * best - worse)
    assert not kept.exhausted and kept.chosen().value == best
    kept.scores += [(4, None), (5, best)]
    assert kept.exhausted
    assert "the best of 5 validations" in str(kept.chosen()) and "stopped early" in str(kept.chosen())


@pytest.mark.slow
def test_adalora_keeps_the_ranks_of_the_best_step(config, tmp_path, plugins):
    ranks = {"options": ["strategy.init_r=4", "strategy.target_r=2"], "strategy": "peft:ADALORA"}
    done = execute(config(best_by="loss", **ranks, **{**TOO_FAST, "max_steps": 12}), tmp_path, plugins=plugins, evaluate=False)
    assert done.record.chosen.step < 12
    loaded = medgraft.load_adapter(tmp_path).backbone
    import torch

    text = loaded.text_batch(["a nodule"], prompt="", max_tokens=16)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [backbone.decode(backbone.encode(pixels), text)[1] for backbone in (loaded, done.backbone)]
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"best_by": "ciderr"}, r"best_by is 'ciderr', which is no score of the validation captions.*Did you mean 'cider'"),
        ({"best_by": "bleu"}, r"best_by is 'bleu'.*Available: loss, bleu_1, bleu_2"),
        ({"best_by": "cider", "max_validation_images": 1}, r"there is only one image"),
        ({"patience": 2}, r"patience needs best_by"),
        ({"eval_steps": 2}, r"eval_steps needs best_by or eval_during_training"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_loaded(settings, told, config, tmp_path, plugins):
    with pytest.raises(ConfigError, match=told):
        _run(
            config(**{"eval_steps": 2, **settings} if "best_by" in settings else {"eval_steps": "null", **settings}),
            tmp_path,
            plugins,
        )


def test_without_validation_images(blip_folder, phantoms_folder, tmp_path, capsys):
    for split in ("train", "test"):
        shutil.copytree(phantoms_folder / split, tmp_path / "data" / split)
    words = ["train", "--backbone", f"blip:{blip_folder}", "--strategy", "lora", "--data", f"roco:{tmp_path / 'data'}", "-q"]
    assert main([*words, "--out", str(tmp_path / "out"), "--set", "train.best_by=cider"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "train.best_by=cider needs validation images" in error and "Give the data a validation split" in error
