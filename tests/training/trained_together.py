"""What test_processes.py starts in one process, and in two: trainings with the same batches, each with its record and adapter.

python [-m torch.distributed.run --nproc-per-node 2] tests/training/trained_together.py BLIP DATA OUT
"""

import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from medgraft import evaluate, hardware, train
from medgraft.config import run_config
from medgraft.errors import Stopped, TrainingError
from medgraft.progress import progress_bars
from medgraft.quiet import quiet_libraries
from medgraft.training.trainer import CaptionTrainer

PRESETS = ("full", "encoder-frozen", "lora")
BATCH = 4  # of all processes together; 10 images leave one process of two without any in an epoch's last batch


def settings(blip, data, strategy, *overrides):
    return run_config(
        backbone=f"blip:{blip}", strategy=strategy, data=f"roco:{data}", max_images=10,
        overrides=[
            f"train.per_device_train_batch_size={BATCH // hardware.process_count()}", "train.dtype=fp32",
            "train.per_device_eval_batch_size=3", "train.num_train_epochs=2", "generation.max_new_tokens=8", *overrides,
        ],
    )  # fmt: skip


class KillAt(TrainerCallback):
    """One process gets Ctrl-C in a step; all have to stop after it."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and hardware.processes().is_last_process:
            os.kill(os.getpid(), signal.SIGINT)


class NotFinite(TrainerCallback):
    """The weights of one process become NaN."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and hardware.processes().is_last_process:
            for parameter in kwargs["model"].parameters():
                parameter.data.fill_(float("nan"))


def with_callback(callback, run):
    made = CaptionTrainer.__init__

    def init(self, **options):
        made(self, **options)
        self.add_callback(callback)

    CaptionTrainer.__init__ = init
    try:
        return run()
    finally:
        CaptionTrainer.__init__ = made


def main(blip, data, out):
    quiet_libraries()
    for strategy in PRESETS:
        train(settings(blip, data, strategy, "train.save_steps=2"), out / strategy, progress=False)
    accumulated = settings(blip, data, "lora", f"train.per_device_train_batch_size={2 // hardware.process_count()}")
    accumulated = settings(
        blip,
        data,
        "lora",
        f"train.per_device_train_batch_size={2 // hardware.process_count()}",
        "train.gradient_accumulation_steps=2",
    )
    train(accumulated, out / "accumulated", progress=False)
    found = evaluate(f"roco:{data}", adapter=out / "lora", backbone=f"blip:{blip}")
    assert len(found.predictions) > 3
    if hardware.process_count() > 1:
        stopped = settings(blip, data, "lora", "train.save_steps=2")
        try:
            with_callback(KillAt(), lambda: train(stopped, out / "stopped", progress=False))
        except Stopped:
            print(f"process {hardware.processes().process_index} stopped", flush=True)
        train(stopped, out / "stopped", resume=True, progress=False)
        try:
            with_callback(NotFinite(), lambda: train(stopped, out / "nan", progress=False))
        except TrainingError as error:
            print(f"process {hardware.processes().process_index}: {error}", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
