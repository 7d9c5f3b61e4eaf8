"""One run's record: the same for the same seed but for its times, and those add up."""

import time

import pytest
from PIL import Image

from medgraft.benchmark import execute, read_record
from medgraft.config import RunConfig

_TIMES = (
    "training_seconds",
    "seconds_per_step",
    "phase_seconds",
    "peak_memory_bytes",
    "finished",
    "features",
    "energy_joules",
    "time_to_first_step",
)


@pytest.fixture
def config(blip_folder, phantoms_folder):
    return RunConfig.model_validate(
        {
            "backbone": f"blip:{blip_folder}",
            "strategy": "lora",
            "data": {"name": "phantoms", "path": str(phantoms_folder), "max_images": 6},
            "train": {"num_train_epochs": 2, "per_device_train_batch_size": 3, "eval_during_training": True},
            "generation": {"max_new_tokens": 6},
        }
    )


@pytest.mark.slow
def test_a_run_repeated_gives_the_same_record_but_for_times(config, plugins, tmp_path):
    first, second = (execute(config, tmp_path / name, plugins=plugins).record.model_dump(exclude=set(_TIMES)) for name in "ab")
    assert first == second
    assert first["metrics"]["fact_study"] >= 0 and "facts" in first["signatures"]
    assert first["step_flops"] > 1e6


def test_a_run_tells_what_is_truncated_unknown_and_cut_off(config, plugins, tmp_path, logged):
    rows = [
        f"{split}.png,{caption},{split}" for split, caption in (("train", "mass " * 40), ("train", "肺"), ("test", "a mass."))
    ]
    (tmp_path / "t.csv").write_text("\n".join(["image,caption,split", *rows]), encoding="utf-8")
    for shade, split in enumerate(("train", "test")):
        Image.new("RGB", (8, 8), (shade * 90, 0, 0)).save(tmp_path / f"{split}.png")
    data = {"name": "csv", "path": str(tmp_path / "t.csv")}
    changes = {"data": data, "train": {"max_steps": 1, "max_text_tokens": 20}, "generation": {"max_new_tokens": 2}}
    config = RunConfig.model_validate(config.model_dump() | changes | {"metrics": ("cider",)})
    with logged() as lines:
        record = execute(config, tmp_path / "out", plugins=plugins).record
    assert (record.text.captions, record.text.longer, record.text.unknown) == (2, 1, {"肺": 1})
    assert record.generated.captions == 1 and record.generated.max_new_tokens == 2 and record.generated.references_longer == 1.0
    wanted = [*record.text.warnings(), *record.generated.warnings()]
    assert len(wanted) == 3 and [line for line in lines if line in wanted] == wanted
    assert read_record(tmp_path / "out" / "record.json") == record


@pytest.mark.slow
def test_the_phases_add_up_to_the_run(config, plugins, tmp_path):
    execute(config, tmp_path / "warm", plugins=plugins)
    start = time.perf_counter()
    record = execute(config, tmp_path / "timed", plugins=plugins).record
    whole = time.perf_counter() - start
    phases = record.phase_seconds
    assert 0.97 * whole <= sum(phases.values()) <= whole
    steps = sum(phases[name] for name in ("train", "data", "forward", "backward", "optimizer"))
    assert record.training_seconds == pytest.approx(steps + phases["features"])
    assert (
        min(
            phases[name]
            for name in ("data", "forward", "backward", "optimizer", "validation", "generation", "load", "read_data", "digests")
        )
        > 0
    )
    assert phases["load"] + phases["read_data"] + phases["digests"] + phases["features"] < record.time_to_first_step < whole
