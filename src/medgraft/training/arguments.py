"""A run's settings as transformers' TrainingArguments."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from medgraft import hardware
from medgraft.config import RunConfig
from medgraft.prepare import compute_dtype
from medgraft.strategies import Applied
from medgraft.training.checkpoints import Checkpoints
from medgraft.training.trackers import PROJECT, run_name
from medgraft.training.workers import PREFETCH_FACTOR


def training_arguments(
    config: RunConfig, applied: Applied, checkpoints: Checkpoints, workers: int, *, validate: bool
) -> TrainingArguments:
    """TrainingArguments of a run with `workers` data loader processes; passes on the ValueError that transformers raises."""
    train = config.train
    where, dtype = hardware.device().type, compute_dtype(config)
    return TrainingArguments(
        output_dir=str(checkpoints.folder),
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
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="no" if not checkpoints.written else "steps" if train.save_steps else "epoch",
        save_steps=train.save_steps or 500,
        eval_strategy="no" if not (train.validates and validate) else "steps" if train.eval_steps else "epoch",
        eval_steps=train.eval_steps,
        prediction_loss_only=True,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_prefetch_factor=PREFETCH_FACTOR if workers else None,
        dataloader_pin_memory=where == "cuda",
        accelerator_config={"non_blocking": where == "cuda"},
        use_cpu=where == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        logging_strategy="steps" if train.report_to else "no",
        logging_steps=train.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",  # see trackers.py
        run_name=run_name(checkpoints.folder.parent),
        project=PROJECT,
    )
