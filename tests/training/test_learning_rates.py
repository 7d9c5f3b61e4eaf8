"""Several learning rates in one run: LoRA+ with the rates of PEFT's optimiser, a rate for each part, resuming, records."""

import json

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import TrainingArguments

from medgraft.adapter import read_manifest
from medgraft.benchmark import execute
from medgraft.clock import Clock
from medgraft.config import run_config
from medgraft.errors import ConfigError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.training import CaptioningModule
from medgraft.training.checkpoints import Checkpoints
from medgraft.training.learning_rates import peak_rates
from medgraft.training.trainer import CaptionTrainer

PLUGINS = PluginManager()


def _trainer(folder, preset, options, tmp_path, optim="adamw_torch"):
    strategy = get_strategy(preset, options, plugins=PLUGINS)
    backbone = load_model(f"blip:{folder}", strategy, plugins=PLUGINS)
    applied = apply_strategy(backbone.model, backbone.anatomy, strategy)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", optim=optim, learning_rate=1e-3, weight_decay=0.01
    )
    trainer = CaptionTrainer(
        model=CaptioningModule(backbone, applied),
        args=arguments,
        clock=Clock(),
        checkpoints=Checkpoints(tmp_path),
        config=run_config(backbone=f"blip:{folder}", strategy=preset, data="phantom"),
    )
    trainer.rates = peak_rates(applied, backbone.anatomy, 1e-3)
    return trainer, applied


def _rates(optimizer, model):
    """(learning rate, weight decay) of each parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"bias": "all"}, {"lora_bias": True}, {"text.roles": "attn,embed"}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_lora_plus_has_the_groups_of_pefts_optimiser(options, blip_folder, tmp_path):
    trainer, applied = _trainer(blip_folder, "lora-plus", options, tmp_path)
    found = _rates(trainer.create_optimizer(), applied.model)
    peft = create_loraplus_optimizer(
        applied.model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.01
    )
    expected = _rates(peft, applied.model)
    assert found.keys() == expected.keys() == {n for n, p in applied.model.named_parameters() if p.requires_grad}
    assert {name: rate for name, (rate, _) in found.items()} == {name: rate for name, (rate, _) in expected.items()}
    decays = {name: decay for name, (_, decay) in found.items() if "lora_embedding" not in name}
    assert decays == {name: expected[name][1] for name in decays}
    assert {rate for name, (rate, _) in found.items() if "lora_B" in name} == {16e-3}


def test_each_part_has_its_own_rate_and_loraplus_leaves_alone_what_is_trained_in_place(blip_folder, tmp_path):
    options = {"vision": "full", "vision.lr_scale": 0.1, "text.lr_scale": 0.5}
    trainer, applied = _trainer(blip_folder, "lora-plus", options, tmp_path)
    found = _rates(trainer.create_optimizer(), applied.model)
    assert {rate for name, (rate, _) in found.items() if "vision_model" in name} == {1e-4}
    assert {rate for name, (rate, _) in found.items() if "lora_A" in name} == {5e-4}
    assert {rate for name, (rate, _) in found.items() if "lora_B" in name} == {8e-3}
    assert {decay for name, (_, decay) in found.items() if name.endswith("bias")} == {0.0}
    assert trainer.learning_rates == {"vision": 1e-4, "text": 5e-4, "text B": 8e-3}


def test_one_rate_is_the_trainers_own_groups(blip_folder, tmp_path):
    trainer, _ = _trainer(blip_folder, "lora", {}, tmp_path)
    assert trainer.learning_rates == {}
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-3}


def test_an_optimiser_with_rates_of_its_own_is_refused(blip_folder, tmp_path, monkeypatch):
    trainer, _ = _trainer(blip_folder, "lora-plus", {}, tmp_path)
    monkeypatch.setattr(
        CaptionTrainer.__mro__[1], "create_optimizer", lambda self: torch.optim.SGD(self.model.parameters(), lr=0.5)
    )
    with pytest.raises(ConfigError, match="SGD has rates or parameters of its own"):
        trainer.create_optimizer()


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("vera", {"loraplus_lr_ratio": 4}, "loraplus_lr_ratio is for LoRA, .* this strategy has PEFT's VERA"),
        ("full", {"loraplus_lr_ratio": 4}, "loraplus_lr_ratio is for LoRA, .* this strategy has no adapter"),
        ("lora", {"loraplus_lr_ratio": 0.5}, "loraplus_lr_ratio: Input should be greater than or equal to 1"),
        ("lora", {"text.lr_scale": 0}, "text.lr_scale: Input should be greater than 0"),
        ("lora-decoder", {"vision.lr_scale": 0.1}, "part 'vision' is trained, but it is frozen"),
    ],
)
def test_rates_that_nothing_has_are_refused(preset, options, message):
    with pytest.raises(ConfigError, match=message):
        get_strategy(preset, options, plugins=PLUGINS)


@pytest.mark.slow
def test_a_run_with_several_rates_resumes_where_it_stopped_and_records_them(
    blip_folder, phantoms_folder, tmp_path, plugins, monkeypatch
):
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy="lora-plus", data=f"roco:{phantoms_folder}", max_images=12,
        overrides=[
            "strategy.vision.lr_scale=0.25", "strategy.text.layers=1-", "train.max_steps=6", "train.save_steps=2",
            "train.per_device_train_batch_size=4", "train.bf16=false", "train.neftune_noise_alpha=5",
        ],
    )  # fmt: skip
    whole = execute(config, tmp_path / "whole", plugins=plugins, evaluate=False).record

    class PowerCutError(Exception):
        pass

    ordinary = CaptionTrainer.training_step

    def cut_off(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise PowerCutError
        return ordinary(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(CaptionTrainer, "training_step", cut_off)
        execute(config, tmp_path / "cut", plugins=plugins, evaluate=False)
    resumed = execute(config, tmp_path / "cut", plugins=plugins, evaluate=False, resume=True).record
    assert resumed.train_loss == whole.train_loss
    rates = {"vision": 1.25e-4, "vision B": 2e-3, "text": 5e-4, "text B": 8e-3}
    manifest = read_manifest(tmp_path / "cut" / "adapter")
    assert resumed.learning_rates == manifest.training["learning_rates"] == pytest.approx(rates)
    assert manifest.strategy_settings.loraplus_lr_ratio == 16 and manifest.strategy_settings.text.layers == "1-"
    assert manifest.training["settings"]["neftune_noise_alpha"] == 5
    assert "text B 0.008" in (tmp_path / "cut" / "adapter" / "README.md").read_text()
    assert json.loads((tmp_path / "cut" / "record.json").read_text())["config"]["train"]["neftune_noise_alpha"] == 5
