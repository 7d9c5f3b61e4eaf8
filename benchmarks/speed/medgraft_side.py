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
from medgraft.clock import Clock
from medgraft.config import GenerationConfig, RunConfig
from medgraft.inference import captioner_for
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare
from medgraft.quiet import quiet_libraries
from medgraft.strategies import get_strategy
from medgraft.training import Checkpoints, build_features, fit
from medgraft.types import CaptionData, Example


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
                "warmup_steps": 0, "max_text_tokens": job.get("max_text_tokens", 512),
                "gradient_checkpointing": job.get("gradient_checkpointing", False),
            },
        }
    )  # fmt: skip
    strategy = get_strategy(config.strategy, config.strategy_options, plugins=plugins)
    train = [Example(str(i), Path(path), (caption,), "train") for i, (path, caption) in enumerate(job["train"])]
    prepared = prepare(config, plugins=plugins, strategy=strategy)
    start = time.perf_counter()
    data = CaptionData("race", tuple(train))
    if prepared.features is not None:
        build_features(prepared.features, config, train)
    built = time.perf_counter() - start
    clock, kernels, on_device = Clock(), {}, []
    with counted_kernels(kernels) if job.get("profile") else device_steps(on_device):
        checkpoints = Checkpoints(Path(job["out"]), written=False)
        result = fit(prepared.backbone, prepared.applied, config, data, checkpoints, clock, prepared.features)
    seconds, said = [0.0, 0.0], []
    model = captioner_for(
        prepared.backbone, prompt=None, dtype=prepared.dtype, batch_size=job["batch_size"], features=prepared.features
    )
    for number in range(2) if job["test"] else ():  # again: with the features that the first time left behind
        options = GenerationConfig(max_new_tokens=job["max_new_tokens"])
        paths = [Path(path) for path in job["test"]]
        start = time.perf_counter()
        said = model.caption(paths, options).captions
        seconds[number] = time.perf_counter() - start
    return {
        "losses": result.losses, "step_seconds": result.step_seconds, "device_step_seconds": on_device, "build_seconds": built,
        "caption_seconds": seconds[0], "caption_again_seconds": seconds[1], "captions": said,
        "peak_memory_bytes": hardware.peak_memory_bytes(), "kernels": kernels, "step_flops": result.step_flops,
        "allocator": hardware.allocator(), "acceleration": prepared.acceleration.installed,
        "settings": config.model_dump(mode="json", include={"train", "features"}),
    }  # fmt: skip


if __name__ == "__main__":
    main(run)
