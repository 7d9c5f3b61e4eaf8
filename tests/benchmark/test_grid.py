"""The plan of a grid on several workers, fitted to records."""

from pathlib import Path

import pytest

from medgraft.benchmark import dry_run_suite, read_records
from medgraft.benchmark.grid import Load, fit, seconds_on
from medgraft.config import SuiteConfig
from medgraft.report import dry_run_text

ROOT = Path(__file__).parents[2]


def test_runs_go_to_the_worker_that_is_free_first():
    assert seconds_on([3, 1, 1, 4], 1) == 9
    assert seconds_on([3, 1, 1, 4], 2) == 6  # 3 | 1 1 4
    assert seconds_on([3, 1, 1, 4], 9) == 4 and seconds_on([], 2) == 0


def test_what_has_no_record_is_estimated_by_the_ratio_of_what_has():
    (record,) = [r for r in read_records(ROOT / "benchmarks/results/real-cxr") if (r.strategy, r.seed) == ("lora", 0)]
    seen, phases = 192 * 16, record.phase_seconds
    training = sum(phases[name] for name in ("train", "data", "forward", "backward", "optimizer", "validation", "checkpoint"))
    captioning = phases["generation"] + phases["scoring"]
    own, other = Load("blip-nano", "lora", seen, 76, 10.0, 2.0), Load("blip-nano", "full", 2 * seen, 76, 30.0, 2.0)
    fitted = fit([record], [own, other])
    assert fitted.seconds(own) == pytest.approx(3 + sum(phases.values()))
    rest = sum(phases.values()) - training - captioning
    assert fitted.seconds(other) == pytest.approx(3 + rest + 30 * training / 10 + captioning)
    assert fit([], [own]).seconds(own) == 3 + 15 + 12


def test_the_plan_is_within_a_quarter_of_local_runs(benchmark_module):
    rows = list(benchmark_module("grid_simulation").simulated())
    assert {row["workers"] for row in rows} == {1, 2, 4}
    for row in rows:
        assert row["said"] == pytest.approx(row["took"], rel=0.25), row


def test_dry_run_plans_the_grid_with_trials_timings_and_money(plugins, phantoms_folder):
    suite = SuiteConfig.model_validate({
        "name": "s", "backbones": ["blip-nano"], "strategies": ["zero-shot", "encoder-frozen", "lora"], "seeds": [0, 1],
        "data": f"roco:{phantoms_folder}", "tuning": {}, "timing": {}, "executor": {"workers": 2, "price_per_hour": 3.0},
        "train": {"dtype": "fp32"},
    })  # fmt: skip
    records = [record for record in read_records(ROOT / "benchmarks/results/quickstart") if record.seed == 0]
    plan = dry_run_suite(suite, plugins=plugins, records=records)
    grid, images = plan.grid, sum(plan.images[f"roco:{phantoms_folder}"].values())
    assert (grid.workers, grid.runs) == (2, 3 * 2 + 2 * 3 + 2 * 3)
    assert grid.work_seconds / 2 < grid.seconds < grid.work_seconds
    assert grid.price == pytest.approx(3 * 2 * grid.seconds / 3600)
    assert grid.store_bytes == images * 65 * 192 * 4  # zero-shot and encoder-frozen share the vision tower's output
    said = dry_run_text(plan)
    assert "Grid of 18 runs on 2 workers" in said and f"fitted to {grid.records} finished runs" in said
    block = said[said.index("Grid of ") :].partition("\n\n")[0]
    assert max(map(len, block.splitlines())) <= 80
    assert dry_run_suite(suite, plugins=plugins).grid.records == 0
