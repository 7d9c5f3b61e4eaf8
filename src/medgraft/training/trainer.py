"""transformers.Trainer with small checkpoints, the loss of every step, phase times and a stop at NaN."""

from __future__ import annotations

import logging
import math
import operator
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerState

from medgraft.backbones import Backbone, prompt_for
from medgraft.clock import Clock, Phase
from medgraft.config import RunConfig
from medgraft.data.collate import CaptionPairs
from medgraft.energy import EnergyMeter
from medgraft.errors import ConfigError, TrainingError, first_line
from medgraft.features import CachedFeatures
from medgraft.strategies import Applied
from medgraft.training.adalora import RankAllocation, has_ranks
from medgraft.training.arguments import training_arguments
from medgraft.training.batches import prepare_batches, resident_features
from medgraft.training.callbacks import CollectLosses, Progress
from medgraft.training.checkpoints import Checkpoints, done_and_wanted, progress_of, trainer_state, write_progress
from medgraft.training.flops import flop_counter
from medgraft.training.graphed_steps import GraphedSteps, graphed_steps
from medgraft.training.interruption import Interruption, SaveAndStop
from medgraft.training.learning_rates import peak_rates, set_rates
from medgraft.training.module import CaptioningModule
from medgraft.training.neftune import noisy_embeddings
from medgraft.training.result import TrainResult
from medgraft.training.step_timer import StepTimer
from medgraft.training.trackers import Trackers
from medgraft.training.validation import validation_examples
from medgraft.training.workers import forking, stop_workers
from medgraft.types import CaptionData

__all__ = ["CaptionTrainer", "TrainResult", "fit"]

_logger = logging.getLogger(__name__)
_TRAINED = "trained.safetensors"


def fit(
    backbone: Backbone,
    applied: Applied,
    config: RunConfig,
    data: CaptionData,
    checkpoints: Checkpoints,
    clock: Clock,
    cached: CachedFeatures | None = None,
) -> TrainResult:
    """Train `applied` in place on the training images of `data`; images with features in `cached` skip the frozen parts.

    Raises TrainingError if the loss becomes NaN or infinite. If checkpoints are written, the first Ctrl-C or SIGTERM stops
    training with one more and raises Stopped.
    """
    interruption = Interruption()
    with clock.phase("train"):
        trainer = _trainer(backbone, applied, config, data, checkpoints, clock, cached)
        trainer.add_callback(Progress(trainer))
        last = checkpoints.start()
        if checkpoints.written:
            trainer.add_callback(SaveAndStop(interruption))
        try:
            if last is not None and (checkpoints.stopped_early(last) or operator.ge(*done_and_wanted(last, config.train))):
                trainer.take_over(last)  # the Trainer would make one step more
            else:
                waits = interruption.awaited() if checkpoints.written else nullcontext()
                noise = noisy_embeddings(trainer.model, config.train.neftune_noise_alpha)
                with waits, forking(trainer.args.dataloader_num_workers), noise:
                    trainer.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            trainer.release()
        losses = trainer.step_losses()  # waits until the accelerator has finished all steps
        trainer.energy.update()
        trainer.check_finite(losses)
        interruption.raise_if_asked()
        if checkpoints.best is not None:
            checkpoints.best.restore(trainer.model, trainer.state.global_step)
        trainer.model.eval()
    evaluations = tuple((int(e["step"]), float(e["eval_loss"])) for e in trainer.state.log_history if "eval_loss" in e)
    epochs, energy = float(trainer.state.epoch or 0), None if last else trainer.energy.joules
    seconds, flops = trainer.timer.seconds(), trainer.flops
    return TrainResult(
        losses, seconds, evaluations, epochs, flops, energy, trainer.learning_rates, trainer.skipped_steps,
        checkpoints.best.chosen() if checkpoints.best else None,
    )  # fmt: skip


def _trainer(
    backbone: Backbone, applied: Applied, config: RunConfig, data: CaptionData, checkpoints: Checkpoints, clock: Clock,
    cached: CachedFeatures | None,
) -> CaptionTrainer:  # fmt: skip
    train, validation = data.split("train"), validation_examples(config, data)
    prompt = prompt_for(backbone, config.train.prompt)
    with clock.phase("features"):
        resident = resident_features(config, data.split("train", "validation"), cached)
    batches = prepare_batches(backbone, config, train, prompt, cached, resident)
    try:
        arguments = training_arguments(config, applied, checkpoints, batches.workers, validate=bool(validation))
    except ValueError as error:
        raise ConfigError(f"Training options: {first_line(error)}") from None
    arguments._n_gpu = min(arguments.n_gpu, 1)  # for several devices use accelerate or torchrun; this turns DataParallel off
    trainer = CaptionTrainer(
        model=CaptioningModule(backbone, applied, prompt, cached.seam if cached else None, resident, batches.pixel_table),
        args=arguments,
        train_dataset=batches.pairs,
        eval_dataset=CaptionPairs(validation) if validation else None,
        data_collator=batches.collator,
        clock=clock,
        checkpoints=checkpoints,
        config=config,
    )
    if config.train.report_to:
        trainer.add_callback(Trackers(config.train.report_to, config, checkpoints.folder.parent))
    if checkpoints.best is not None:
        trainer.add_callback(checkpoints.best)
    if applied.strategy.method == "ADALORA" and applied.adapter_parameters and not has_ranks(applied.model):
        trainer.ranks = RankAllocation(applied.model)
        trainer.add_callback(trainer.ranks)
    trainer.counts_flops = not applied.quantized
    trainer.rates = peak_rates(applied, backbone.anatomy, arguments.learning_rate)
    if trainer.learning_rates:
        _logger.info("peak learning rates: %s", ", ".join(f"{what} {rate:g}" for what, rate in trainer.learning_rates.items()))
    return trainer


class CaptionTrainer(Trainer):
    """Saves only trained tensors in checkpoints, and leaves losses on the device until they are read."""

    def __init__(self, *, clock: Clock, checkpoints: Checkpoints, config: RunConfig, **options: Any):  # transformers.Trainer's
        super().__init__(**options)
        self.clock = clock
        self.checkpoints = checkpoints
        self.config = config
        self.ranks: RankAllocation | None = None
        self._written_to: Path | None = None  # the folder that a checkpoint is being written to
        self.planned_steps: int | None = None  # of the run that wrote the checkpoint to resume from
        self.remove_callback(PrinterCallback)
        self.rates: dict[str, dict[nn.Parameter, float]] = {}  # see peak_rates
        self.counts_flops = False
        self.flops: int | None = None  # of the first batch
        self.energy = EnergyMeter()
        self.skipped_steps = 0
        self._graphs: GraphedSteps | None = None
        self._graphs_asked = False
        self.timer = StepTimer(self.args.device)
        self._energy_read = 0.0
        self._scores: dict[str, float] = {}  # of the captions of the validation that is going on
        self._optimizing = ExitStack()
        self._losses: list[torch.Tensor | float] = []
        self._parts: list[torch.Tensor] = []  # losses of the current step's micro-batches
        self.add_callback(CollectLosses(self))

    @property
    def learning_rates(self) -> dict[str, float]:
        """See TrainResult."""
        rates = {what: next(iter(several.values())) for what, several in self.rates.items()}
        return rates if len(set(rates.values()) | {self.args.learning_rate}) > 1 else {}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's, with each parameter's own learning rate."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.learning_rates:
            set_rates(optimizer, {p: r for several in self.rates.values() for p, r in several.items()}, self.args.learning_rate)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the Trainer's step and record its loss; on a CPU, where reading it is free, check every loss."""
        counted = self.counts_flops and self.flops is None and not torch._C._autograd._profiler_enabled()  # it counts twice
        counter = flop_counter() if counted else None
        with self._phase("backward"), counter or nullcontext():  # the forward pass inside has its own phase
            replayed = self._replayed(*args, **kwargs) if counter is None else None
            loss: torch.Tensor = super().training_step(*args, **kwargs) if replayed is None else replayed
        if counter is not None:
            self.flops = int(counter.get_total_flops())
        self._parts.append(loss)
        if loss.device.type == "cpu" or self.state.global_step % 50 == 0:
            self.check_finite([loss.item()])
        return loss

    def _replayed(self, model: torch.nn.Module, inputs: Any, items: Any = None, **others: Any) -> torch.Tensor | None:
        """The loss of a step that a CUDA graph replayed, None if it must run eagerly."""
        if not self._graphs_asked:
            self._graphs_asked = True
            self._graphs = graphed_steps(self)
        return self._graphs.step(inputs, others.get("num_items_in_batch", items)) if self._graphs else None

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, timed as the forward pass."""
        with self._phase("forward"):
            return super().compute_loss(*args, **kwargs)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """The Trainer's, timed as part of the optimiser's work."""
        with self._phase("optimizer"):
            return super()._clip_grad_norm(model)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, timed as waiting for data."""
        with self._phase("data"):
            return super().get_batch_samples(*args, **kwargs)

    def optimizing(self, now: bool) -> None:
        """Start or stop timing the optimiser's work."""
        self._optimizing.close()
        if now:
            self._optimizing.enter_context(self._phase("optimizer"))

    def _phase(self, name: Phase) -> AbstractContextManager[None]:
        """A timed phase of a step on a CPU; elsewhere nothing, since timing it would make the device wait for the host."""
        return self.clock.phase(name) if self.args.device.type == "cpu" and self.model.training else nullcontext()

    def end_step(self) -> None:
        """Add up the micro-batch losses of an optimiser step, and record its time."""
        self.timer.lap()
        now = time.perf_counter()
        self.clock.end_of_step()
        self.skipped_steps += bool(self.args.fp16 and self.accelerator.optimizer_step_was_skipped)
        if self.args.device.type == "cpu" or now - self._energy_read > 1:  # a read is as slow as a step's launch
            self.energy.update()
            self._energy_read = now
        self._losses.append(torch.stack(self._parts).sum() if len(self._parts) > 1 else self._parts[0])
        self._parts.clear()

    def step_losses(self) -> tuple[float, ...]:
        """The loss of every optimiser step so far."""
        new = [loss for loss in self._losses if isinstance(loss, torch.Tensor)]
        done = [loss for loss in self._losses if not isinstance(loss, torch.Tensor)]
        self._losses = [*done, *(torch.stack(new).tolist() if new else ())]
        return tuple(map(float, self._losses))

    def release(self) -> None:
        """Stop the data loader's workers, and free device memory that only training needs."""
        if self._graphs is not None:
            self._graphs.close()
        self.model.resident = None
        loaders = (getattr(self.callback_handler, f"{kind}_dataloader", None) for kind in ("train", "eval"))
        for loader in (*loaders, *getattr(self, "_eval_dataloaders", {}).values()):
            stop_workers(loader)

    def check_finite(self, losses: Sequence[float]) -> None:
        """Raise TrainingError, with advice, if a loss is NaN or infinite."""
        if not all(math.isfinite(loss) for loss in losses):
            raise TrainingError(
                f"The loss became {next(x for x in losses if not math.isfinite(x))} near step {self.state.global_step + 1} "
                f"at learning rate {self.args.learning_rate:g}. Try a smaller --learning-rate or --set train.max_grad_norm=0.5."
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's, timed as validation."""
        with self.clock.phase("validation"):
            best = self.checkpoints.best
            self._scores = best.measured() if best else {}
            result: dict[str, float] = super().evaluate(*args, **kwargs)
        return result

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with the scores of generated captions."""
        found = super().evaluation_loop(*args, **kwargs)
        found.metrics.update({f"eval_{name}": value for name, value in self._scores.items()})
        return found

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.clock.phase("checkpoint"), self.checkpoints.writing(self.state.global_step) as self._written_to:
            super()._save_checkpoint(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._written_to or self.args.output_dir)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's, without its closing summary, whose times differ from ours."""
        if "train_runtime" not in logs:
            super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(trained, folder / _TRAINED)
        if self.ranks is not None:
            self.ranks.save(folder)
        progress = {"identity": self.checkpoints.identity, "config": self.config.model_dump(mode="json")}
        progress |= {"best": self.checkpoints.best.save(folder)} if self.checkpoints.best else {}
        write_progress(folder, progress | {"losses": self.step_losses(), "seconds": self.clock.steps})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        tensors, progress = load_file(folder / _TRAINED), progress_of(folder)
        wanted = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: p.shape for name, p in wanted.items()}:
            raise TrainingError(f"{folder} has other parameters than this run. Train without --resume, with --overwrite.")
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(tensors[name])
        if self.ranks is not None:
            self.ranks.load(folder)
        if self.checkpoints.best is not None:
            self.checkpoints.best.load(folder, progress["best"])
        self._losses = list(progress["losses"])
        self.clock.add("train", progress["seconds"])
        self.planned_steps = trainer_state(folder)["max_steps"]

    def take_over(self, checkpoint: Path) -> None:
        """The weights and the state of a checkpoint at the end of training."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
