"""Callbacks of the training loop: losses, step times and a progress bar."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medgraft.progress import progress_bar

if TYPE_CHECKING:
    from medgraft.training.trainer import CaptionTrainer

_logger = logging.getLogger(__name__)


class CollectLosses(TrainerCallback):
    """Tells the trainer when each step, and the optimiser's work in it, begins and ends, and the data set which epoch it is."""

    def __init__(self, trainer: CaptionTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.timer.start()
        planned = self.trainer.planned_steps
        if planned not in (None, state.max_steps):
            _logger.info(
                "resumed at step %d of what were %d steps; the learning rate now follows the schedule of %d steps",
                state.global_step, planned, state.max_steps,
            )  # fmt: skip

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.train_dataset.begin_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.optimizing(True)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.optimizing(False)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.end_step()
        control.should_log |= bool(self.trainer.config.train.report_to) and state.global_step >= state.max_steps


class Progress(TrainerCallback):
    """A progress bar with the loss of the last step."""

    def __init__(self, trainer: CaptionTrainer):
        self.trainer = trainer
        self.bar: Any = None
        self.shown = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        on_cpu = args.device.type == "cpu"  # on other devices, reading the loss waits for the step to finish
        if (state.global_step % 10 == 0) if on_cpu else (time.perf_counter() - self.shown > 2):
            self.shown = time.perf_counter()
            self.bar.set_postfix(loss=f"{self.trainer.step_losses()[-1]:.3f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
