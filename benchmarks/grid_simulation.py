"""Check the plan of a grid on several workers against local runs, and plan one that no machine here could do.

    python benchmarks/grid_simulation.py --out benchmarks/results/grid_simulation.json

Simulated: costs are fitted to some recorded runs, the others are planned on 1, 2 and 4 workers, and the same schedule is made
from the seconds that they took. On paper: BLIP-base, 450,000 images, 8 strategies, 5 seeds, from the steps timed on an H200.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
WORKERS = (1, 2, 4)
START = 3.0  # seconds of a run outside its phases
TRAINED, TESTED, EPOCHS, SEEDS = (
    405_000,
    45_000,
    3,
    5,
)  # ROCOv2 (80,000 images) and MIMIC-CXR (370,000), a tenth of them for tests
ONCE, PRICE = 120.0, 3.0  # seconds of a run to load, package and draw maps; price of a GPU for an hour


def simulated() -> Iterator[dict[str, Any]]:
    """What was said and what was taken, in seconds, by what the plan was fitted to and workers."""
    from medgraft.benchmark import Record, read_records
    from medgraft.benchmark.grid import Load, fit, seconds_on

    def load(record: Record) -> Load:
        train = record.config.train
        return Load(
            record.config.backbone,
            record.strategy,
            record.steps * train.per_device_train_batch_size,
            record.images["test"],
            0,
            0,
        )

    suites = ("quickstart", "real-cxr", "roco-cc")
    every = {name: [r for r in read_records(RESULTS / name) if r.backbone != "baseline"] for name in suites}
    cases = {
        f"seed 0 of {name}": ([r for r in runs if not r.seed], [r for r in runs if r.seed]) for name, runs in every.items()
    }
    cases["all of real-cxr, for roco-cc"] = every["real-cxr"], every["roco-cc"]
    cases["all of roco-cc, for real-cxr"] = every["roco-cc"], every["real-cxr"]
    for name, (known, planned) in cases.items():
        fitted = fit(known)
        for workers in WORKERS:
            said = seconds_on((fitted.seconds(load(record)) for record in planned), workers)
            took = seconds_on((START + sum(record.phase_seconds.values()) for record in planned), workers)
            yield {
                "fitted to": name,
                "records": len(known),
                "runs": len(planned),
                "workers": workers,
                "said": said,
                "took": took,
            }


def on_paper() -> dict[str, Any]:
    """Hours of a run by strategy, and those of the grid and its price by workers."""
    from medgraft.benchmark.grid import Costs, Fit, Load, seconds_on

    race = json.loads((RESULTS / "gpu/race.json").read_text(encoding="utf-8"))
    measured = {name: run["medgraft"] for name, run in race["runs"].items() if name not in ("warm-up", "qwen")}
    costs = {
        ("blip", name): Costs(
            ONCE, median(run["step_seconds"]) / race["batch_size"], run["caption_again_seconds"] / race["test_images"]
        )
        for name, run in measured.items()
    }
    frozen = costs["blip", "encoder-frozen"]
    costs["blip", "zero-shot"] = Costs(ONCE, None, frozen.captioning)
    fitted = Fit(costs)
    loads = {name: Load("blip", name, 0 if name == "zero-shot" else TRAINED * EPOCHS, TESTED, 0, 0) for _, name in costs}
    seconds = {name: fitted.seconds(load) for name, load in loads.items()}
    grid = [each for _ in range(SEEDS) for each in sorted(seconds.values(), reverse=True)]
    rows = []
    for workers in (1, 4, 8, 16):
        hours = seconds_on(grid, workers) / 3600
        rows.append({"workers": workers, "hours": hours, "price": hours * workers * PRICE})
    tokens, width = (race["image_size"] // 16) ** 2 + 1, 768
    return {
        "images": TRAINED + TESTED, "epochs": EPOCHS, "seeds": SEEDS, "price_per_hour": PRICE, "machine": "NVIDIA H200",
        "run_hours": {name: each / 3600 for name, each in seconds.items()}, "runs": len(grid), "grids": rows,
        "work_hours": sum(grid) / 3600, "store_bytes": (TRAINED + TESTED) * tokens * width * 2,
    }  # fmt: skip


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record = {"simulated": list(simulated()), "paper": on_paper()}
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
