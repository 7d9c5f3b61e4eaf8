"""The same job as trainer_script.py by medgraft: `python benchmarks/speed/medgraft_side.py JOB.json`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import transformers
from profiling import counted_kernels
from sides import device_steps, main

from medgraft import hardware
from medgraft.adapter import load_base
from medgraft.captioning import caption_images
from medgraft.config import GenerationConfig, RunConfig
from medgraft.heap import kept_heap
from medgraft.plugin import PluginManager
from medgraft.quiet import quiet_libraries
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.training import Clock, fit, prepare_features, prepare_linear
from medgraft.types import Example


@kept_heap()  # as medgraft's own runs are
def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train, caption, tell."""
    quiet_libraries()
    if "features_folder" in job:  # where no other job left any
        os.environ["MEDGRAFT_FEATURES"] = job["features_folder"]
    transformers.set_seed(job["seed"])
    plugins = PluginManager()
    config = RunConfig.model_validate(
        {
            "backbone": f"{job.get('backbone', 'blip')}:{job['model']}",
            "strategy": job["strategy"], "strategy_options": job.get("strategy_options", {}),
            "data": {"name": "roco"}, "seed": job["seed"],
            "features": {"enabled": job.get("features", True)},
            "train": {
                "num_train_epochs": job["epochs"], "per_device_train_batch_size": job["batch_size"], "bf16": job["bf16"],
                "learning_rate": job["learning_rate"], "lr_scheduler_type": "constant", "weight_decay": 0.0,
                "warmup_steps": 0, "group_by_length": False, "max_text_tokens": job.get("max_text_tokens", 512),
                "gradient_checkpointing": job.get("gradient_checkpointing", False),
            },
        }
    )  # fmt: skip
    strategy = get_strategy(config.strategy, config.strategy_options, plugins=plugins)
    backbone = load_base(config.backbone, strategy, plugins=plugins)
    applied = apply_strategy(backbone.model, backbone.anatomy, strategy)
    if job["bf16"]:
        prepare_linear(backbone, applied)
    train = [Example(str(i), Path(path), (caption,), "train") for i, (path, caption) in enumerate(job["train"])]
    start = time.perf_counter()
    supply, _ = prepare_features(backbone, config, train, progress=False)
    built = time.perf_counter() - start
    clock, kernels, on_device = Clock(), {}, []
    with counted_kernels(kernels) if job.get("profile") else device_steps(on_device):
        result = fit(
            backbone, applied, config, train, [], Path(job["out"]), clock, checkpoints=False, progress=False, supply=supply
        )
    seconds, said = [0.0, 0.0], []
    for number in range(2) if job["test"] else ():  # again: with the features that the first time left behind
        options = GenerationConfig(max_new_tokens=job["max_new_tokens"])
        paths = [Path(path) for path in job["test"]]
        start = time.perf_counter()
        said = caption_images(backbone, paths, options=options, batch_size=job["batch_size"], bf16=job["bf16"], supply=supply)
        seconds[number] = time.perf_counter() - start
    return {
        "losses": result.losses, "step_seconds": result.step_seconds, "device_step_seconds": on_device, "build_seconds": built,
        "caption_seconds": seconds[0], "caption_again_seconds": seconds[1], "captions": said,
        "peak_memory_bytes": hardware.peak_memory_bytes(), "kernels": kernels, "step_flops": result.step_flops,
        "allocator": hardware.allocator(),
        "settings": config.model_dump(mode="json", include={"train", "features"}),
    }  # fmt: skip


if __name__ == "__main__":
    main(run)
