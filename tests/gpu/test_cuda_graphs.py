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
from medgraft.acceleration import KERNELS
from medgraft.clock import Clock
from medgraft.config import run_config
from medgraft.data import open_image
from medgraft.data.levels import pixel_levels, pixel_values
from medgraft.data.roco import Roco
from medgraft.features import device_bytes, load_resident, open_cached_features
from medgraft.models import load_model
from medgraft.prepare import compute_dtype, prepare, prepare_model
from medgraft.strategies import get_strategy
from medgraft.training import Checkpoints, build_features, fit
from medgraft.training.trainer import CaptionTrainer
from medgraft.types import CaptionData

pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available() or os.environ.get("MEDGRAFT_DEVICE") == "cpu",
        reason="needs an NVIDIA GPU: MEDGRAFT_DEVICE=cuda python -m pytest tests/gpu",
    ),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python's, at workers beside threads
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
]
STEPS = 12
EAGER = ",".join(kernel.name for kernel in KERNELS if kernel.name != "cuda_graphs")


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

    def run(strategy, *, kernels="auto", bf16=True, same_example=False, rate=None, change=lambda backbone: None, **options):
        transformers.set_seed(0)
        config = run_config(
            backbone=f"blip:{blip_folder}", strategy=strategy, data=f"roco:{phantoms_folder}",
            overrides=[
                f"train.max_steps={STEPS}", "train.per_device_train_batch_size=4", f"train.bf16={str(bf16).lower()}",
                "train.lr_scheduler_type=constant", "train.warmup_steps=0", f"acceleration.kernels={kernels}",
                *([f"train.learning_rate={rate}"] if rate else []),
            ],
        )  # fmt: skip
        model = prepare(config, plugins=plugins, strategy=get_strategy(strategy, options, plugins=plugins))
        examples = [e for e in Roco().read(phantoms_folder) if e.split == "train"][:24]
        if same_example:
            examples = [replace(e, image=examples[0].image, captions=("axial ct of the chest.",)) for e in examples]
        if model.features is not None:
            build_features(model.features, config, examples)
        change(model.backbone)
        data, checkpoints = CaptionData("phantoms", tuple(examples)), Checkpoints(tmp_path / "out", written=False)
        return fit(model.backbone, model.applied, config, data, checkpoints, Clock(), model.features)

    return run


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("strategy", ["full", "encoder-frozen", "lora", "lora-decoder", "qlora-decoder"])
def test_replayed_steps_have_the_losses_of_eager_ones(train, seen, strategy, bf16):
    eager = train(strategy, kernels=EAGER, bf16=bf16)
    replayed = train(strategy, bf16=bf16)
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


@pytest.mark.parametrize("kernels", ["auto", EAGER], ids=["replayed", "eager"])
@pytest.mark.parametrize("strategy", ["full", "encoder-frozen", "lora", "qlora-decoder"])
def test_nothing_is_waited_for(train, seen, monkeypatch, strategy, kernels):
    ordinary = CaptionTrainer.train

    def watched(self, *args, **kwargs):
        self.add_callback(_NoWaiting())
        return ordinary(self, *args, **kwargs)

    monkeypatch.setattr(CaptionTrainer, "train", watched)
    try:
        train(strategy, kernels=kernels, same_example=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == [(1, None) if kernels == "auto" else None]


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
    eager = train("lora-decoder", kernels=EAGER, lora_dropout=0.1)  # whose random numbers go on after the failure
    assert len(eager.losses) == STEPS
    without = train("lora-decoder", kernels=EAGER)
    failed = train("lora-decoder", change=lambda backbone: _fail(backbone, how))
    assert failed.losses == pytest.approx(without.losses, rel=1e-2)
    assert seen[-1][0] == 0 and seen[-1][1]
    assert sum("not replayed as CUDA graphs" in record.message for record in caplog.records) == 1
    if how != "wrong":  # found by comparing, which dropout rules out
        dropped = train("lora-decoder", lora_dropout=0.1, change=lambda backbone: _fail(backbone, how))
        assert len(dropped.losses) == STEPS
    assert torch.rand(4, device="cuda").isfinite().all()


def test_dropout_in_a_replayed_step_is_new_each_time(train, seen):
    def spread(dropout):
        same = {"same_example": True, "rate": 1e-12, "init_lora_weights": False}
        losses = train("lora", lora_dropout=dropout, **same).losses
        return max(losses[4:]) - min(losses[4:])

    assert spread(0.5) > 10 * spread(0.0)
    assert seen == [(1, None), (1, None)]


def test_steps_that_graphs_cannot_do_are_eager_and_a_line_says_why(train, seen, logged):
    with logged() as lines:
        assert len(train("lora-int8").losses) == STEPS
    assert seen == [None]
    assert [line for line in lines if "not replayed as CUDA graphs: 8-bit layers" in line]


def test_the_kernels_of_a_gpu_are_installed(blip_folder, plugins):
    strategy = get_strategy("qlora", plugins=plugins)
    installed = prepare_model(f"blip:{blip_folder}", strategy, plugins=plugins, dtype=torch.bfloat16)[2].installed
    assert installed == ("sdpa", "linear", "quantized", "lora", "causal_loss", "cuda_graphs", "graphed_decoding")


def test_features_on_the_device_are_the_stored_ones(blip_folder, phantoms_folder, plugins):
    config = run_config(backbone=f"blip:{blip_folder}", strategy="encoder-frozen", data=f"roco:{phantoms_folder}")
    backbone, _, _ = prepare_model(config.backbone, get_strategy("encoder-frozen", plugins=plugins), plugins=plugins)
    examples = [e for e in Roco().read(phantoms_folder) if e.split == "train"]
    cached, _ = open_cached_features(backbone, dtype=compute_dtype(config), prompt="", max_gb=1)
    build_features(cached, config, examples)
    paths, device = [example.image for example in examples], hardware.device()
    resident = load_resident(cached, paths, device, device_bytes(device, "auto"))
    taken = resident.take(torch.tensor([resident.rows[path] for path in paths], device=device))
    assert torch.equal(taken.cpu(), torch.stack(cached.stored(paths)))


def test_pixel_values_made_on_the_device_are_the_processors(blip_folder, plugins, phantoms_folder):
    backbone = load_model(f"blip:{blip_folder}", get_strategy("full", plugins=plugins), plugins=plugins)
    images = [open_image(e.image) for e in list(Roco().read(phantoms_folder))[:4]]
    split = pixel_levels(backbone)
    made = pixel_values(split.levels(images).cuda(), split.table.cuda())
    assert torch.equal(made.cpu(), backbone.pixel_values(images))


def test_seconds_of_steps_add_up_to_the_time_that_passed(train):
    start = time.perf_counter()
    result = train("full")
    assert 0 < sum(result.step_seconds) < time.perf_counter() - start
