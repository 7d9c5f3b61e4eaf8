"""A call of the library leaves the process as it was: allocator, warnings, verbosity, random numbers, the log's level."""

import ctypes
import logging
import random
import warnings

import numpy as np
import pytest
import torch
import transformers

import medgraft


def _state():
    return {
        "warnings": list(warnings.filters),
        "verbosity": transformers.logging.get_verbosity(),
        "progress bars of transformers": transformers.logging.is_progress_bar_enabled(),
        "levels": [logging.getLogger(name).level for name in ("medgraft", "bitsandbytes", "transformers", "peft")],
        "handlers": list(logging.getLogger("medgraft").handlers),
        "python": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
    }


@pytest.fixture
def no_allocator_is_touched(monkeypatch):
    """mallopt and malloc_trim are reached through ctypes alone."""

    class Library(ctypes.CDLL):
        def __getattr__(self, name):
            assert not name.startswith("mallo")
            return super().__getattr__(name)

    monkeypatch.setattr(ctypes, "CDLL", Library)


@pytest.mark.usefixtures("no_allocator_is_touched")
def test_training_and_captioning_change_nothing_of_the_caller(blip_folder, phantoms_folder, tmp_path, plugins):
    config = medgraft.run_config(
        backbone=f"blip:{blip_folder}", strategy="lora", data=f"roco:{phantoms_folder}", seed=5, max_images=4,
        overrides=["train.max_steps=2", "generation.max_new_tokens=4"],
    )  # fmt: skip
    transformers.logging.set_verbosity_warning()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = _state()
    record = medgraft.train(config, tmp_path / "adapter", progress=False, plugins=plugins)
    assert record.status == "ok" and record.config.seed == 5
    assert _state() == before
    image = next((phantoms_folder / "test/radiology/images").iterdir())
    assert medgraft.caption([image], adapter=tmp_path / "adapter")
    assert _state() == before
    transformers.logging.set_verbosity_error()


def test_training_from_python_leaves_what_a_suite_leaves_and_a_checkpoint(blip_folder, phantoms_folder, tmp_path, plugins):
    config = medgraft.run_config(
        backbone=f"blip:{blip_folder}", strategy="bitfit", data=f"roco:{phantoms_folder}", max_images=3,
        overrides=["train.max_steps=1", "generation.max_new_tokens=4"],
    )  # fmt: skip
    record = medgraft.train(config, tmp_path, progress=False, plugins=plugins)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".medgraft-checkpoints", "adapter", "baselines", "maps.json", "predictions.json", "record.json",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md", "medgraft.json", "trained_on.safetensors", "trained_tensors.safetensors",
    }  # fmt: skip
    assert [each for each in medgraft.benchmark.read_records(tmp_path) if each.backbone != "baseline"] == [record]
