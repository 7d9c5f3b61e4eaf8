"""Records in the layout of PEFT's `method_comparison`, one JSON file per run, so that its tables and plots can read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medgraft.benchmark import BASELINE, Record
from medgraft.plugin import PluginManager
from medgraft.strategies import get_strategy

_SCORE = "cider"  # in place of PEFT's test accuracy


def peft_results(records: Sequence[Record], *, plugins: PluginManager) -> dict[str, dict[str, Any]]:
    """Contents by file name, for every run that trained, with the fields of PEFT's `method_comparison/processing.py`.

    `train_time` is medgraft's training time, which, unlike PEFT's, excludes tokenizing and captioning. Fields without a
    counterpart are 0 where PEFT needs a number; fields that PEFT lacks are under `medgraft`.
    """
    trained = [record for record in records if record.backbone != BASELINE and (record.trainable_parameters or record.error)]
    return {f"{_name(record)}.json": _result(record, plugins) for record in trained}


def write_peft_results(records: Sequence[Record], folder: Path, *, plugins: PluginManager) -> int:
    """Write the files of `peft_results` into `folder`; returns their number."""
    found = peft_results(records, plugins=plugins)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return len(found)


def _name(record: Record) -> str:
    model = record.backbone.rpartition("/")[2].replace(":", "-")
    return f"{record.strategy.replace(':', '-')}--{model}-{record.data}-seed{record.seed}-{record.run_id[:8]}"


def _result(record: Record, plugins: PluginManager) -> dict[str, Any]:
    train = record.config.train
    strategy = get_strategy(record.strategy, record.config.strategy_options, plugins=plugins)
    samples = (record.steps or 0) * train.per_device_train_batch_size * train.gradient_accumulation_steps
    rate = train.learning_rate or strategy.learning_rate
    loss = record.train_loss[-1] if record.train_loss else None
    memory = record.peak_memory_bytes or 0
    metrics = {
        "step": record.steps or 0, "train loss": loss, "train samples": samples, "train total tokens": 0,
        "test accuracy": (record.metrics or {}).get(_SCORE),
    }  # fmt: skip
    if record.forgetting is not None:  # PEFT's own is of a language model's loss on text
        metrics["forgetting"] = record.forgetting
    return {
        "run_info": {
            "created_at": record.finished,
            "total_time": sum((record.phase_seconds or {}).values()),
            "experiment_name": f"{record.strategy}/{_name(record).partition('--')[2]}",
            "peft_branch": "medgraft",
            "train_config": {
                "model_id": record.backbone, "batch_size": train.per_device_train_batch_size, "seed": record.seed,
                "max_steps": record.steps or 0, "grad_norm_clip": train.max_grad_norm, "optimizer_type": train.optim,
                "optimizer_kwargs": {"lr": rate, "weight_decay": train.weight_decay},
                "lr_scheduler": train.lr_scheduler_type,
            },
            "peft_config": {"peft_type": strategy.method, **strategy.options} if strategy.uses_adapter else None,
            "error_msg": record.error or "",
        },
        "train_info": {
            "status": "success" if record.status == "ok" else "failed",
            "accelerator_memory_reserved_avg": memory, "accelerator_memory_max": memory,
            "accelerator_memory_reserved_99th": memory,
            "train_time": record.training_seconds or 0.0,
            "file_size": record.adapter_bytes or 0,
            "num_trainable_params": record.trainable_parameters or 0,
            "num_total_params": record.total_parameters or 0,
            "metrics": [metrics],
        },
        "meta_info": {
            "model_info": {"sha": record.base_fingerprint, "created_at": None},
            "dataset_info": {record.data: {"sha": record.data_fingerprint, "created_at": None}},
            "package_info": {
                f"{name}-version": record.versions.get(name)
                for name in ("transformers", "datasets", "peft", "torch", "bitsandbytes", "medgraft")
            },
            "system_info": asdict(record.hardware),
        },
        "medgraft": record.model_dump(mode="json"),
    }  # fmt: skip
