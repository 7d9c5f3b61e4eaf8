"""Measures a run by a short one: a few training steps and a batch of captions, in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from medgraft import hardware
from medgraft.benchmark.estimate import RunEstimate
from medgraft.benchmark.plan import Planned
from medgraft.benchmark.process import Job, run_in_process
from medgraft.config import TIMING_WARMUP_STEPS, RunConfig
from medgraft.data.collate import CaptionPairs
from medgraft.errors import ConfigError, MedgraftError
from medgraft.forgetting_config import ForgettingConfig
from medgraft.types import CaptionData, Example

STEPS = TIMING_WARMUP_STEPS + 4  # the fewest that have a median without the first, slower ones


@dataclass(frozen=True)
class Probe:
    """What a short run measured: seconds of a step, of all that is done once, and of each image; and its peak memory."""

    step: float
    start: float
    feature: float
    caption: float
    memory_bytes: int

    def training_seconds(self, steps: int, images: int) -> float:
        """Seconds to train `steps` steps on `images` images, from what they take here."""
        return self.start + self.step * steps + self.feature * images


def steps_of(config: RunConfig, training: Sequence[Example]) -> int:
    """The number of optimiser steps that a run makes, as the Trainer counts them."""
    train = config.train
    if train.max_steps > 0:
        return train.max_steps
    batches = math.ceil(len(CaptionPairs(training)) / (train.per_device_train_batch_size * hardware.process_count()))
    return math.ceil(math.ceil(batches / train.gradient_accumulation_steps) * train.num_train_epochs)


def free_bytes() -> tuple[int, int]:
    """Free memory of this machine, and of the device that computes."""
    here = psutil.virtual_memory().available
    return here, torch.cuda.mem_get_info()[0] if hardware.device().type == "cuda" else here


def probe(config: RunConfig, trains: bool) -> Probe:
    """Run `config` for a few steps, without scores; ConfigError if that fails.

    The images are the first of its data, as many as the steps need. Features are stored as in the run itself.
    """
    train = config.train
    used = STEPS * train.per_device_train_batch_size * train.gradient_accumulation_steps if trains else 1
    images = max(used, train.per_device_eval_batch_size)
    short = config.model_copy(
        update={
            "train": train.model_copy(update={"max_steps": STEPS, "eval_during_training": False, "save_final_state": False}),
            "data": config.data.model_copy(update={"max_images": min(images, config.data.max_images or images)}),
            "saliency": config.saliency.model_copy(update={"maps": 0, "curves": 0}),
            "forgetting": ForgettingConfig(images=0),
            "metrics": ("bleu",),
        }
    )
    with TemporaryDirectory(prefix="medgraft-probe-") as folder:
        record = run_in_process(Job(short, "probe", Path(folder), "probe"))
    if record.status != "ok":
        raise ConfigError(f"the probe failed: {record.error}")
    seconds, captioned = record.phase_seconds or {}, (record.images or {}).get(config.eval_split) or 1
    step = record.step_quartiles[1] if record.step_quartiles else 0.0
    features = seconds.get("features", 0.0)
    return Probe(
        step=step,
        start=max((record.training_seconds or 0.0) - features - step * (record.steps or 0), 0.0),
        feature=features / max((record.images or {}).get("train", 0), 1),
        caption=seconds.get("generation", 0.0) / captioned,
        memory_bytes=record.peak_memory_bytes or 0,
    )


def probed_runs(
    planned: Planned, runs: Sequence[RunEstimate], data: Mapping[str, CaptionData | None], here: set[str],
    not_probed: dict[str, str],
) -> list[RunEstimate]:  # fmt: skip
    """`runs`, which are those of `planned`, with measured seconds and memory; other seeds than the first take the same.

    Adds reasons to `not_probed`.
    """
    found: list[RunEstimate] = []
    done: dict[str, Probe | None] = {}
    for (config, strategy), run in zip(planned, runs, strict=True):
        images, key = data[config.data.model_dump_json()], config.model_copy(update={"seed": 0}).model_dump_json()
        if key not in done:
            try:
                _check_probe(config, run, images, here)
                done[key] = probe(config, strategy.trains)
            except MedgraftError as error:
                done[key] = None
                not_probed[f"{run.strategy} on {run.backbone}"] = str(error)
        measured = done[key]
        if measured is None or images is None:
            found.append(run)
            continue
        training = images.split("train") if run.training_seconds else ()
        trained = measured.training_seconds(steps_of(config, training), len(training)) if training else 0.0
        found.append(
            replace(
                run, probed=True, memory_bytes=measured.memory_bytes, training_seconds=trained,
                captioning_seconds=measured.caption * len(images.split(config.eval_split)),
            )
        )  # fmt: skip
    return found


def _check_probe(config: RunConfig, run: RunEstimate, images: CaptionData | None, here: set[str]) -> None:
    """Raise ConfigError with the reason if a run is not to be probed here."""
    if run.memory_bytes is None or config.backbone not in here:
        raise ConfigError("its base is not on this machine")
    if images is None:
        raise ConfigError("its data were not found")
    for needed, has in zip((run.loading_bytes or 0, run.memory_bytes), free_bytes(), strict=True):
        if needed > has and not config.model.spreads:
            raise ConfigError(f"it needs {needed / 1e9:.1f} GB of memory, and {has / 1e9:.1f} are free")
