"""Training on an NVIDIA GPU: replayed steps are the eager ones, nothing is waited for, and what fails is done eagerly.

MEDGRAFT_DEVICE=cuda python -m pytest tests/gpu
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import TrainerCallback

from medgraft import hardware
from medgraft.adapter import load_base
from medgraft.config import run_config
from medgraft.data.levels import pixel_levels, pixel_values
from medgraft.data.roco import Roco
from medgraft.errors import ConfigError
from medgraft.features import device_bytes, load_resident
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.training import Clock, fit, prepare_features, prepare_linear
from medgraft.training.trainer import CaptionTrainer

pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available() or os.environ.get("MEDGRAFT_DEVICE") == "cpu",
        reason="needs an NVIDIA GPU: MEDGRAFT_DEVICE=cuda python -m pytest tests/gpu",
    ),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python's, at workers beside threads
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
]
STEPS = 12


@pytest.fixture
def seen(monkeypatch):
    """What became of each trainer's graphs: (how many, what went wrong), None without any."""
    found = []
    ordinary = CaptionTrainer.release

    def release(self):
        steps = self._graphs
        found.append((len(steps._graphs._recorded), steps._graphs.problem) if steps else None)
        ordinary(self)

    monkeypatch.setattr(CaptionTrainer, "release", release)
    return found


@pytest.fixture
def train(blip_folder, phantoms_folder, tmp_path, plugins):
    """`train(strategy, **options)` gives the TrainResult of some steps with a small BLIP."""

    def run(strategy, *, graphs, bf16=True, same_example=False, rate=None, change=lambda backbone: None, **options):
        transformers.set_seed(0)
        config = run_config(
            backbone=f"blip:{blip_folder}", strategy=strategy, data=f"roco:{phantoms_folder}",
            overrides=[
                f"train.max_steps={STEPS}", "train.per_device_train_batch_size=4", f"train.bf16={str(bf16).lower()}",
                "train.lr_scheduler_type=constant", "train.warmup_steps=0", f"acceleration.cuda_graphs={graphs}",
                *([f"train.learning_rate={rate}"] if rate else []),
            ],
        )  # fmt: skip
        chosen = get_strategy(strategy, options, plugins=plugins)
        backbone = load_base(config.backbone, chosen, plugins=plugins)
        applied = apply_strategy(backbone.model, backbone.anatomy, chosen)
        if bf16:
            prepare_linear(backbone, applied)
        examples = [e for e in Roco().read(phantoms_folder) if e.split == "train"][:24]
        if same_example:
            examples = [replace(e, image=examples[0].image, captions=("axial ct of the chest.",)) for e in examples]
        supply, _ = prepare_features(backbone, config, examples, progress=False)
        change(backbone)
        return fit(
            backbone, applied, config, examples, [], tmp_path / "out", Clock(),
            checkpoints=False, progress=False, supply=supply,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("strategy", ["full", "encoder-frozen", "lora", "lora-decoder", "qlora-decoder"])
def test_replayed_steps_have_the_losses_of_eager_ones(train, seen, strategy, bf16):
    eager = train(strategy, graphs="false", bf16=bf16)
    replayed = train(strategy, graphs="true", bf16=bf16)
    assert seen[0] is None
    assert seen[1][0] >= 1 and seen[1][1] is None
    assert replayed.losses == pytest.approx(eager.losses, rel=1e-2 if bf16 else 1e-4)
    assert len(replayed.step_seconds) == STEPS and min(replayed.step_seconds) > 0


class _NoWaiting(TrainerCallback):
    """From the fifth step on it is an error if the host waits for the device."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            torch.cuda.set_sync_debug_mode("error")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == STEPS - 1:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", ["true", "false"])
@pytest.mark.parametrize("strategy", ["full", "encoder-frozen", "lora", "qlora-decoder"])
def test_nothing_is_waited_for(train, seen, monkeypatch, strategy, graphs):
    ordinary = CaptionTrainer.train

    def watched(self, *args, **kwargs):
        self.add_callback(_NoWaiting())
        return ordinary(self, *args, **kwargs)

    monkeypatch.setattr(CaptionTrainer, "train", watched)
    try:
        train(strategy, graphs=graphs, same_example=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == [(1, None) if graphs == "true" else None]


def _fail(backbone, how):
    ordinary = backbone.loss

    def loss(*args):
        found = ordinary(*args)
        recording = torch.cuda.is_current_stream_capturing()
        if how == "waits":
            found.item()
        elif how == "raises" and recording:
            raise RuntimeError("not in a recording")
        elif how == "spoils the recording" and recording:
            torch.cuda.current_stream().synchronize()
        elif how == "wrong" and recording:
            found = found * 2
        return found

    backbone.loss = loss


@pytest.mark.parametrize("how", ["waits", "raises", "wrong", "spoils the recording"])
def test_a_step_that_cannot_be_recorded_is_done_eagerly(train, seen, caplog, how):
    eager = train("lora-decoder", graphs="false", lora_dropout=0.1)  # whose random numbers go on after the failure
    assert len(eager.losses) == STEPS
    without = train("lora-decoder", graphs="false")
    failed = train("lora-decoder", graphs="true", change=lambda backbone: _fail(backbone, how))
    assert failed.losses == pytest.approx(without.losses, rel=1e-2)
    assert seen[-1][0] == 0 and seen[-1][1]
    assert sum("not replayed as CUDA graphs" in record.message for record in caplog.records) == 1
    if how != "wrong":  # found by comparing, which dropout rules out
        dropped = train("lora-decoder", graphs="true", lora_dropout=0.1, change=lambda backbone: _fail(backbone, how))
        assert len(dropped.losses) == STEPS
    assert torch.rand(4, device="cuda").isfinite().all()


def test_dropout_in_a_replayed_step_is_new_each_time(train, seen):
    def spread(dropout):
        same = {"same_example": True, "rate": 1e-12, "init_lora_weights": False}
        losses = train("lora", graphs="true", lora_dropout=dropout, **same).losses
        return max(losses[4:]) - min(losses[4:])

    assert spread(0.5) > 10 * spread(0.0)
    assert seen == [(1, None), (1, None)]


def test_graphs_that_cannot_be_are_told(train):
    with pytest.raises(ConfigError, match="8-bit"):
        train("lora-int8", graphs="true")
    assert len(train("lora-int8", graphs="auto").losses) == STEPS


def test_features_on_the_device_are_the_stored_ones(train, seen, blip_folder, phantoms_folder, plugins):
    strategy = get_strategy("encoder-frozen", plugins=plugins)
    config = run_config(backbone=f"blip:{blip_folder}", strategy="encoder-frozen", data=f"roco:{phantoms_folder}")
    backbone = load_base(config.backbone, strategy, plugins=plugins)
    apply_strategy(backbone.model, backbone.anatomy, strategy)
    examples = [e for e in Roco().read(phantoms_folder) if e.split == "train"]
    supply, _ = prepare_features(backbone, config, examples, progress=False)
    paths, device = [example.image for example in examples], hardware.device()
    resident = load_resident(supply, paths, device, device_bytes(device, "auto"))
    taken = resident.take(torch.tensor([resident.rows[path] for path in paths], device=device))
    assert torch.equal(taken.cpu(), torch.stack([supply.stored(path) for path in paths]))


def test_pixel_values_made_on_the_device_are_the_processors(blip_folder, plugins, phantoms_folder):
    from medgraft.data import open_image

    backbone = load_base(f"blip:{blip_folder}", get_strategy("full", plugins=plugins), plugins=plugins)
    images = [open_image(e.image) for e in list(Roco().read(phantoms_folder))[:4]]
    split = pixel_levels(backbone)
    made = pixel_values(split.levels(images).cuda(), split.table.cuda())
    assert torch.equal(made.cpu(), backbone.pixel_values(images))


def test_seconds_of_steps_add_up_to_the_time_that_passed(train):
    start = time.perf_counter()
    result = train("full", graphs="true")
    assert 0 < sum(result.step_seconds) < time.perf_counter() - start
