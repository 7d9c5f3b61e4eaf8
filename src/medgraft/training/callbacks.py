"""What happens around the steps of training: noting losses and times, and a progress bar."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from medgraft.training.trainer import CaptionTrainer


class CollectLosses(TrainerCallback):
    """Tells the trainer when a step, and its optimiser's part, begin and end."""

    def __init__(self, trainer: CaptionTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.timer.start()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.optimizing(True)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.optimizing(False)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.end_step()


class Progress(TrainerCallback):
    """A bar with the loss of the last step."""

    def __init__(self, trainer: CaptionTrainer):
        self.trainer = trainer
        self.bar: tqdm[Any] | None = None
        self.shown = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.bar is not None
        self.bar.update(state.global_step - self.bar.n)
        on_cpu = args.device.type == "cpu"  # elsewhere the loss is waited for
        if (state.global_step % 10 == 0) if on_cpu else (time.perf_counter() - self.shown > 2):
            self.shown = time.perf_counter()
            self.bar.set_postfix(loss=f"{self.trainer.step_losses()[-1]:.3f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
