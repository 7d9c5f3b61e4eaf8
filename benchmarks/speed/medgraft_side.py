"""The same job as trainer_script.py by medgraft: `python benchmarks/speed/medgraft_side.py JOB.json`."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import transformers
from profiling import counted_kernels

from medgraft import hardware
from medgraft.captioning import caption_images
from medgraft.config import GenerationConfig, RunConfig
from medgraft.heap import kept_heap
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare
from medgraft.quiet import quiet_libraries
from medgraft.strategies import get_strategy
from medgraft.training import Clock, build_features, fit
from medgraft.types import Example


@kept_heap()  # as medgraft's own runs are
def main() -> None:
    """Train, caption, tell."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    quiet_libraries()
    transformers.set_seed(job["seed"])
    plugins = PluginManager()
    config = RunConfig.model_validate(
        {
            "backbone": f"{job.get('backbone', 'blip')}:{job['model']}",
            "strategy": job["strategy"], "data": {"name": "roco"}, "seed": job["seed"],
            "features": {"enabled": job.get("features", True)},
            "train": {
                "num_train_epochs": job["epochs"], "per_device_train_batch_size": job["batch_size"], "bf16": job["bf16"],
                "learning_rate": job["learning_rate"], "lr_scheduler_type": "constant", "weight_decay": 0.0,
                "warmup_steps": 0, "max_text_tokens": job.get("max_text_tokens", 512),
                "gradient_checkpointing": job.get("gradient_checkpointing", False),
            },
        }
    )  # fmt: skip
    strategy = get_strategy(config.strategy, plugins=plugins)
    train = [Example(str(i), Path(path), (caption,), "train") for i, (path, caption) in enumerate(job["train"])]
    prepared = prepare(config, plugins=plugins, strategy=strategy)
    backbone, applied, cached = prepared.backbone, prepared.applied, prepared.features
    start = time.perf_counter()
    build_features(prepared, config, train, progress=False)
    built = time.perf_counter() - start
    clock, kernels = Clock(), {}
    with counted_kernels(kernels) if job.get("profile") else nullcontext():
        result = fit(
            backbone, applied, config, train, [], Path(job["out"]), clock, checkpoints=False, progress=False, cached=cached
        )
    seconds, said = [0.0, 0.0], []
    for number in range(2) if job["test"] else ():  # again: with the features that the first time left behind
        options = GenerationConfig(max_new_tokens=job["max_new_tokens"])
        paths = [Path(path) for path in job["test"]]
        start = time.perf_counter()
        said = caption_images(backbone, paths, options=options, batch_size=job["batch_size"], bf16=job["bf16"], cached=cached)
        seconds[number] = time.perf_counter() - start
    told = {
        "losses": result.losses, "step_seconds": result.step_seconds, "build_seconds": built, "caption_seconds": seconds[0],
        "caption_again_seconds": seconds[1], "captions": said,
        "peak_memory_bytes": hardware.peak_memory_bytes(), "kernels": kernels, "step_flops": result.step_flops,
        "allocator": hardware.allocator(), "acceleration": prepared.acceleration.installed,
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
