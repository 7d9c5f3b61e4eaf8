"""Training through transformers.Trainer: it learns, goes on where it stopped, counts labels, and stops at NaN."""

import json

import pytest
import torch

import medgraft
from medgraft.adapter import locate_adapter
from medgraft.benchmark import execute
from medgraft.clock import Clock
from medgraft.config import run_config
from medgraft.errors import DataError, TrainingError
from medgraft.models import load_model
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.training import CaptioningModule
from medgraft.training.trainer import CaptionTrainer


def _config(blip_folder, phantoms_folder, strategy="lora", augmentation="none", **train):
    settings = {"max_steps": 6, "per_device_train_batch_size": 4, "bf16": "false", **train}
    return run_config(
        backbone=f"blip:{blip_folder}", strategy=strategy, data=f"roco:{phantoms_folder}", max_images=12,
        overrides=[f"augmentation.preset={augmentation}", *(f"train.{key}={value}" for key, value in settings.items())],
    )  # fmt: skip


def _run(config, out, plugins, **options):
    return execute(config, out, plugins=plugins, evaluate=False, **options)


@pytest.mark.slow
def test_training_lowers_the_loss_and_records_every_step(blip_folder, phantoms_folder, tmp_path, plugins):
    config = _config(blip_folder, phantoms_folder, strategy="full", max_steps=25, learning_rate=3e-3)
    record = _run(config, tmp_path, plugins).record
    assert len(record.train_loss) == record.steps == 25
    assert record.train_loss[-1] < 0.7 * record.train_loss[0]
    assert record.training_seconds == pytest.approx(record.seconds_per_step * 25 + record.phase_seconds["features"])
    assert record.training_seconds < sum(record.phase_seconds.values())
    assert record.peak_memory_bytes > 2**20
    assert [path.name for path in (tmp_path / ".medgraft-checkpoints").glob("*-*")] == ["checkpoint-25"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(blip_folder, phantoms_folder, tmp_path, plugins):
    config = _config(blip_folder, phantoms_folder)
    first, second = (_run(config, tmp_path / name, plugins).record for name in "ab")
    assert first.train_loss == second.train_loss
    assert first.run_id == second.run_id
    files = [(locate_adapter(tmp_path / name) / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize(("save_steps", "augmentation"), [(3, "none"), (4, "radiology")])  # after and within an epoch
def test_resuming_ends_where_an_uninterrupted_run_ends(
    save_steps, augmentation, blip_folder, phantoms_folder, tmp_path, plugins, monkeypatch
):
    config = _config(blip_folder, phantoms_folder, augmentation=augmentation, max_steps=8, save_steps=save_steps)
    whole = _run(config, tmp_path / "whole", plugins).record

    class PowerCutError(Exception):
        pass

    ordinary = CaptionTrainer.training_step

    def cut_off(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise PowerCutError
        return ordinary(self, *args, **kwargs)

    monkeypatch.setattr(CaptionTrainer, "training_step", cut_off)
    with pytest.raises(PowerCutError):
        _run(config, tmp_path / "cut", plugins)
    assert (tmp_path / f"cut/.medgraft-checkpoints/checkpoint-{save_steps}/trained.safetensors").is_file()
    monkeypatch.setattr(CaptionTrainer, "training_step", ordinary)
    resumed = _run(config, tmp_path / "cut", plugins, resume=True).record
    assert resumed.train_loss == whole.train_loss
    assert resumed.training_seconds > resumed.phase_seconds["checkpoint"]
    names = ("whole", "cut")
    assert len({(locate_adapter(tmp_path / name) / "adapter_model.safetensors").read_bytes() for name in names}) == 1


def test_a_checkpoint_holds_trained_tensors_only(blip_folder, phantoms_folder, tmp_path, plugins):
    run = _run(_config(blip_folder, phantoms_folder, max_steps=1), tmp_path, plugins)
    checkpoint = tmp_path / ".medgraft-checkpoints/checkpoint-1"
    assert (checkpoint / "trained.safetensors").stat().st_size < 5 * run.record.trainable_parameters + 20_000


@pytest.mark.slow
def test_accumulated_small_batches_are_one_large_batch(blip_folder, phantoms_folder, tmp_path, plugins):
    large = _config(blip_folder, phantoms_folder, max_steps=3, per_device_train_batch_size=6)
    small = _config(blip_folder, phantoms_folder, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    one, other = (_run(config, tmp_path / name, plugins).record for name, config in (("a", large), ("b", small)))
    assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(blip_folder, phantoms_folder, tmp_path, plugins):
    configs = [
        _config(blip_folder, phantoms_folder, "full", max_steps=3, gradient_checkpointing=on) for on in ("true", "false")
    ]
    one, other = (_run(config, tmp_path / str(i), plugins).record for i, config in enumerate(configs))
    assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


def test_a_frozen_encoder_builds_no_graph(blip_folder, plugins):
    strategy = get_strategy("encoder-frozen", plugins=plugins)
    backbone = load_model(f"blip:{blip_folder}", strategy, plugins=plugins)
    module = CaptioningModule(backbone, apply_strategy(backbone.model, backbone.anatomy, strategy)).train()
    seen = []
    ordinary = backbone.forward_to
    backbone.forward_to = lambda *words, **more: seen.append(ordinary(*words, **more)) or seen[-1]
    text = backbone.text_batch(["a nodule"], prompt="", max_tokens=16)
    module(text.input_ids, text.attention_mask, text.labels, torch.zeros(1, 3, 64, 64))["loss"].backward()
    assert [seam.name for seam in module.frozen_seams] == ["vision"]
    assert not seen[0].requires_grad
    assert module.backbone.model.text_decoder.training
    assert not module.backbone.model.vision_model.training


def test_a_loss_that_is_not_a_number_stops_with_advice(blip_folder, phantoms_folder, tmp_path, plugins):
    config = _config(blip_folder, phantoms_folder, "full", max_steps=5, learning_rate=1e20, max_grad_norm=1e9)
    with pytest.raises(TrainingError, match=r"The loss became (nan|inf) near step \d.*Try a smaller --learning-rate"):
        _run(config, tmp_path, plugins)


def test_validation_is_measured_apart(blip_folder, phantoms_folder, tmp_path, plugins):
    config = _config(blip_folder, phantoms_folder, max_steps=6, eval_during_training="true")
    record = _run(config, tmp_path, plugins).record
    assert record.validation_loss and record.validation_loss[0][0] == 3
    assert record.phase_seconds["validation"] > 0


def test_without_training_images(blip_folder, tmp_path, phantoms_folder, plugins):
    import shutil

    shutil.copytree(phantoms_folder / "test", tmp_path / "data/test")
    config = _config(blip_folder, tmp_path / "data")
    with pytest.raises(DataError, match="has no training images"):
        _run(config, tmp_path / "out", plugins)


@pytest.mark.slow
def test_adalora_moves_rank(blip_folder, phantoms_folder, tmp_path, plugins):
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy="peft:ADALORA", data=f"roco:{phantoms_folder}", max_images=8,
        overrides=["train.max_steps=12", "strategy.init_r=4", "strategy.target_r=2", "train.bf16=false"],
    )  # fmt: skip
    run = _run(config, tmp_path, plugins)
    peft_config = json.loads((locate_adapter(tmp_path) / "adapter_config.json").read_text())
    assert peft_config["total_step"] == 12
    assert len(run.record.train_loss) == 12
    ranks = {sum(kept) for kept in peft_config["rank_pattern"].values()}
    assert len(ranks) > 1
    loaded = medgraft.load_adapter(tmp_path).backbone
    text = loaded.text_batch(["a nodule"], prompt="", max_tokens=16)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [backbone.decode(backbone.encode(pixels), text)[1] for backbone in (loaded, run.backbone)]
    torch.testing.assert_close(*logits)


def test_the_clock_counts_each_second_once():
    import time

    clock = Clock()
    with clock.phase("train"):
        time.sleep(0.02)
        with clock.phase("validation"):
            time.sleep(0.03)
        time.sleep(0.02)
    assert 0.035 < clock.seconds["train"] < 0.06
    assert 0.025 < clock.seconds["validation"] < 0.05
