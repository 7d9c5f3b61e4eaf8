"""What is computed on the GPU and on the CPU alike, from the same weights and batches; `python reference.py WORK` is the CPU's.

Started by check.py with MEDGRAFT_DEVICE=cpu; leaves `reference.json` in WORK.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgraft.backbones import prompt_for
from medgraft.benchmark import execute
from medgraft.config import run_config
from medgraft.data import open_image
from medgraft.inference import Inference
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.quiet import quiet_libraries
from medgraft.strategies import Strategy

STRATEGIES = ("encoder-frozen", "full", "lora", "qlora-decoder")
STEPS = 4  # the loss of the last one is that after three steps
CAPTION = "axial ct of the chest showing a nodule."


def losses(work: Path, strategy: str, bf16: bool, out: Path, plugins: PluginManager) -> list[float]:
    """The losses of the first steps of the small BLIP in WORK."""
    overrides = [
        f"train.max_steps={STEPS}", "train.per_device_train_batch_size=4", f"train.bf16={str(bf16).lower()}",
        "train.learning_rate=2e-4", "train.lr_scheduler_type=constant", "train.warmup_steps=0",
        f"strategy.compute_dtype={'bfloat16' if bf16 else 'float32'}",
    ]  # fmt: skip
    config = run_config(
        backbone=f"blip:{work / 'little'}", strategy=strategy, data=f"roco:{work / 'phantoms'}", max_images=12,
        overrides=overrides,
    )  # fmt: skip
    done = execute(config, out, plugins=plugins, evaluate=False, checkpoints=False)
    return list(done.record.train_loss or ())


def maps(backbone: str, image: Path, plugins: PluginManager) -> list[Any]:
    """The maps of a caption's words by a bare backbone in fp32, [words, rows, columns] as lists."""
    model, _, _ = prepare_model(backbone, Strategy(), plugins=plugins)
    inference = Inference(model, prompt_for(model, None), torch.float32)
    (found,) = inference.maps([open_image(image)], [CAPTION])
    grids: list[Any] = np.stack([word.grid for word in found.words]).tolist()
    return grids


def looking(work: Path, plugins: PluginManager) -> dict[str, str]:
    """Backbones whose maps are compared: a BLIP, the trained one if its plugin is there, and one with a Q-Former."""
    trained = "blip-nano" in plugins.names("backbone")
    return {"BLIP": "blip-nano" if trained else f"blip:{work / 'little'}", "Q-Former": f"blip2:{work / 'tiny' / 'blip2-opt'}"}


def first_image(work: Path) -> Path:
    """The image whose maps are compared."""
    return min((work / "phantoms/train/radiology/images").iterdir())


def main() -> None:
    """Compute everything; an answer that cannot be had is its traceback."""
    quiet_libraries()
    work, plugins = Path(sys.argv[1]), PluginManager.from_environment()
    jobs: dict[str, Callable[[], Any]] = {}
    for name, backbone in looking(work, plugins).items():
        jobs[f"maps {name}"] = lambda backbone=backbone: maps(backbone, first_image(work), plugins)
    for bf16 in (False, True):
        for strategy in STRATEGIES:
            out = work / "reference" / f"{strategy}-{bf16}"
            jobs[f"losses {strategy} {'bf16' if bf16 else 'fp32'}"] = lambda s=strategy, b=bf16, o=out: losses(
                work, s, b, o, plugins
            )
    answers: dict[str, Any] = {}
    for key, job in jobs.items():
        try:
            answers[key] = {"value": job()}
        except Exception:  # it is told in the row that wants this answer
            answers[key] = {"error": traceback.format_exc()}
    temporary = work / f"reference.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(answers), encoding="utf-8")
    temporary.replace(work / "reference.json")


if __name__ == "__main__":
    main()
