"""transformers.Trainer with what captioning adapters add: small checkpoints, a loss for every step, a stop at NaN."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainingArguments

from medgraft import hardware
from medgraft.backbones import Backbone, prompt_for
from medgraft.config import RunConfig
from medgraft.data.collate import CaptionPairs, PixelCache
from medgraft.energy import EnergyMeter
from medgraft.errors import ConfigError, TrainingError
from medgraft.features import CachedFeatures
from medgraft.heap import kept_heap
from medgraft.prepare import uses_bf16
from medgraft.strategies import Applied
from medgraft.training.adalora import RankAllocation
from medgraft.training.callbacks import CollectLosses, Progress
from medgraft.training.clock import Clock, Phase
from medgraft.training.collator import Collator
from medgraft.training.flops import flop_counter
from medgraft.training.module import CaptioningModule
from medgraft.types import Example

_TRAINED, _PROGRESS = "trained.safetensors", "medgraft_progress.json"


@dataclass(frozen=True)
class TrainResult:
    """What training left behind: loss and seconds of every optimiser step, and validation losses as (step, loss).

    A step's seconds include the wait for its data; steps of an earlier process that was resumed have none. `step_flops` are
    the operations of the first batch's products, None if the base is quantised, whose products torch does not count;
    `energy_joules` is what the steps took, None where nothing counts it or a part of them was not seen.
    """

    losses: tuple[float, ...]
    step_seconds: tuple[float, ...]
    validation_losses: tuple[tuple[int, float], ...]
    step_flops: int | None
    energy_joules: float | None


@kept_heap()
def fit(
    backbone: Backbone,
    applied: Applied,
    config: RunConfig,
    train: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    clock: Clock,
    *,
    resume: bool = False,
    checkpoints: bool = True,
    progress: bool = True,
    cached: CachedFeatures | None = None,
) -> TrainResult:
    """Train `applied` in place. Checkpoints go to `folder`, which is removed at the end; `resume` goes on from its last.

    Images whose features are in `cached` are not looked at again.

    Raises TrainingError if the loss becomes NaN or infinite.
    """
    with clock.phase("train"):
        trainer = _trainer(backbone, applied, config, train, validation, folder, clock, checkpoints, cached)
        if progress:
            trainer.add_callback(Progress(trainer))
        last = _last_checkpoint(folder) if resume else None
        if not resume:
            _remove(folder)
        trainer.train(resume_from_checkpoint=last)
        losses = trainer.step_losses()
        trainer.check_finite(losses)
        trainer.model.eval()
        with clock.phase("checkpoint"):
            _remove(folder)
    evaluations = tuple((int(e["step"]), float(e["eval_loss"])) for e in trainer.state.log_history if "eval_loss" in e)
    return TrainResult(losses, tuple(trainer.step_seconds), evaluations, trainer.flops, None if last else trainer.energy.joules)


def _trainer(
    backbone: Backbone, applied: Applied, config: RunConfig, train: Sequence[Example], validation: Sequence[Example],
    folder: Path, clock: Clock, checkpoints: bool, cached: CachedFeatures | None,
) -> CaptionTrainer:  # fmt: skip
    settings = config.train
    prompt = prompt_for(backbone, settings.prompt)
    pixels = PixelCache(backbone, int(settings.pixel_cache_gb * 1e9))
    try:
        arguments = _arguments(config, applied, folder, checkpoints, bool(validation))
    except ValueError as error:
        raise ConfigError(f"Training options: {str(error).splitlines()[0]}") from None
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several devices take accelerate or torchrun, not DataParallel
    trainer = CaptionTrainer(
        model=CaptioningModule(backbone, applied, prompt, cached.seam if cached else None),
        args=arguments,
        train_dataset=CaptionPairs(train),
        eval_dataset=CaptionPairs(validation) if validation else None,
        data_collator=Collator(backbone, pixels, prompt, settings.max_text_tokens, cached),
        clock=clock,
    )
    if applied.strategy.method == "ADALORA" and applied.adapter_parameters:
        trainer.add_callback(RankAllocation(applied.model))
    trainer.counts_flops = not applied.quantized
    trainer.identity = config.model_dump_json(
        exclude={"train": {"report_to", "dataloader_num_workers"}, "features": True, "acceleration": True}
    )
    return trainer


def _remove(folder: Path) -> None:
    """Remove checkpoints once, when no process is writing any."""
    hardware.wait_for_everyone()
    if hardware.is_main_process():
        shutil.rmtree(folder, ignore_errors=True)
    hardware.wait_for_everyone()


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: the Trainer's state comes last."""
    complete = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


def _arguments(config: RunConfig, applied: Applied, folder: Path, checkpoints: bool, validate: bool) -> TrainingArguments:
    train = config.train
    where = hardware.device().type
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        per_device_train_batch_size=train.per_device_train_batch_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        activation_checkpointing=train.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=train.learning_rate or applied.strategy.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=train.optim,
        bf16=uses_bf16(config),
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="no" if not checkpoints else "steps" if train.save_steps else "epoch",
        save_steps=train.save_steps or 500,
        save_total_limit=train.save_total_limit,
        eval_strategy="epoch" if train.eval_during_training and validate else "no",
        prediction_loss_only=True,
        dataloader_num_workers=train.dataloader_num_workers,
        dataloader_pin_memory=where == "cuda",
        use_cpu=where == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        logging_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(train.report_to) or "none",
    )


class CaptionTrainer(Trainer):
    """Checkpoints hold trained tensors only. Losses stay on the device until they are asked for."""

    def __init__(self, *, clock: Clock, **options: Any):  # the rest is transformers.Trainer's own
        super().__init__(**options)
        self.clock = clock
        self.identity = ""  # the run's configuration: a checkpoint of another one is refused
        self.remove_callback(PrinterCallback)
        self.counts_flops = False
        self.flops: int | None = None  # of the first batch
        self.energy = EnergyMeter()
        self.step_seconds: list[float] = []
        self.step_start = 0.0
        self._optimizing = ExitStack()
        self._losses: list[torch.Tensor | float] = []
        self._parts: list[torch.Tensor] = []  # losses of the micro-batches of the step under way
        self.add_callback(CollectLosses(self))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the Trainer's; keeps the loss, and on a CPU, where looking costs nothing, checks it at once."""
        counted = self.counts_flops and self.flops is None and not torch._C._autograd._profiler_enabled()  # it counts twice
        counter = flop_counter() if counted else None
        with self._phase("backward"), counter or nullcontext():  # of which the forward pass is a phase of its own
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        if counter is not None:
            self.flops = int(counter.get_total_flops())
        self._parts.append(loss)
        if loss.device.type == "cpu" or self.state.global_step % 50 == 0:
            self.check_finite([loss.item()])
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, on the clock as the forward pass."""
        with self._phase("forward"):
            return super().compute_loss(*args, **kwargs)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """As the Trainer's, on the clock as a part of the optimiser's work."""
        with self._phase("optimizer"):
            return super()._clip_grad_norm(model)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, on the clock as waiting for data."""
        with self._phase("data"):
            return super().get_batch_samples(*args, **kwargs)

    def optimizing(self, now: bool) -> None:
        """Put the clock on the optimiser, or take it off."""
        self._optimizing.close()
        if now:
            self._optimizing.enter_context(self._phase("optimizer"))

    def _phase(self, name: Phase) -> AbstractContextManager[None]:
        """A part of a step, where parts can be told without making the device wait for the host: on a CPU."""
        return self.clock.phase(name) if self.args.device.type == "cpu" and self.model.training else nullcontext()

    def end_step(self) -> None:
        """Add up the micro-batches of an optimiser step, and note its time."""
        now = time.perf_counter()
        self.step_seconds.append(now - self.step_start)
        self.energy.update()
        self.step_start = now
        self._losses.append(torch.stack(self._parts).sum())
        self._parts.clear()

    def step_losses(self) -> tuple[float, ...]:
        """The loss of every optimiser step so far."""
        losses = [float(loss) for loss in self._losses]
        self._losses = list(losses)
        return tuple(losses)

    def check_finite(self, losses: Sequence[float]) -> None:
        """TrainingError with what to try if a loss is NaN or infinite."""
        if not all(math.isfinite(loss) for loss in losses):
            raise TrainingError(
                f"The loss became {next(x for x in losses if not math.isfinite(x))} near step {self.state.global_step + 1} "
                f"at learning rate {self.args.learning_rate:g}. Try a smaller --learning-rate or --set train.max_grad_norm=0.5."
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's, on the clock as validation."""
        with self.clock.phase("validation"):
            result: dict[str, float] = super().evaluate(*args, **kwargs)
        return result

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.clock.phase("checkpoint"):
            super()._save_checkpoint(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, without the closing summary, whose times are not ours."""
        if "train_runtime" not in logs:
            super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(trained, folder / _TRAINED)
        progress = {"identity": self.identity, "losses": self.step_losses(), "seconds": self.clock.steps}
        (folder / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        tensors = load_file(folder / _TRAINED)
        wanted = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        progress = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if progress["identity"] != self.identity or shapes != {name: p.shape for name, p in wanted.items()}:
            raise TrainingError(f"{folder} was made with other settings; give those again, or train without --resume.")
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(tensors[name])
        self._losses = list(progress["losses"])
        self.clock.add("train", progress["seconds"])
