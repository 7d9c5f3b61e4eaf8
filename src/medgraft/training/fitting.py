"""One training, from a model with its strategy applied to the losses and times of its steps."""

from __future__ import annotations

import logging
import operator
from contextlib import nullcontext

from medgraft import hardware
from medgraft.backbones import Backbone, prompt_for
from medgraft.clock import Clock
from medgraft.config import RunConfig
from medgraft.data.collate import CaptionPairs
from medgraft.errors import ConfigError, first_line
from medgraft.features import CachedFeatures
from medgraft.strategies import Applied
from medgraft.training.adalora import RankAllocation, has_ranks
from medgraft.training.arguments import training_arguments
from medgraft.training.batches import prepare_batches, resident_features
from medgraft.training.callbacks import Progress
from medgraft.training.checkpoints import Checkpoints, done_and_wanted
from medgraft.training.interruption import Interruption, SaveAndStop
from medgraft.training.learning_rates import peak_rates
from medgraft.training.module import CaptioningModule
from medgraft.training.neftune import noisy_embeddings
from medgraft.training.result import TrainResult
from medgraft.training.sharded import gather_trained
from medgraft.training.trackers import Trackers
from medgraft.training.trainer import CaptionTrainer
from medgraft.training.validation import validation_examples
from medgraft.training.workers import forking
from medgraft.types import CaptionData

_logger = logging.getLogger(__name__)


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
        if hardware.is_sharded():
            gather_trained(trainer.model)
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
    trainer.counts_flops = not applied.quantized and not hardware.is_sharded()
    trainer.rates = peak_rates(applied, backbone.anatomy, arguments.learning_rate)
    if trainer.learning_rates:
        _logger.info("peak learning rates: %s", ", ".join(f"{what} {rate:g}" for what, rate in trainer.learning_rates.items()))
    return trainer
