"""Quality against size: full fine-tuning of blip-nano on phantoms, extracted in low rank (`medgraft adapter extract`).

    python benchmarks/extraction.py                       # a few minutes on two cores; writes results/extraction.json
    python benchmarks/extraction.py --count 60 --epochs 1 --out /tmp/trial.json

Trains once with the settings of suites/quickstart.toml. Each extraction captions the test split anew; its difference to full
fine-tuning has an interval over the same resampled images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medgraft import hardware
from medgraft.adapter import adapter_bytes, load_adapter, locate_adapter, read_manifest
from medgraft.benchmark import execute
from medgraft.benchmark.evaluation import Evaluation
from medgraft.config import DataConfig, run_config
from medgraft.conversion import ExtractOptions, extract_adapter
from medgraft.conversion.quality import evaluation, inference_of
from medgraft.data import load_data
from medgraft.plugin import PluginManager
from medgraft.quiet import quiet_libraries
from medgraft.stats import Resampling

RESULT = Path(__file__).parent / "results" / "extraction.json"
KEPT = (0.99, 0.9, 0.75, 0.5, 0.25)
RANKS = (4, 16)
PLUGINS = PluginManager()


def main() -> None:
    """Train, extract, caption, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1800, help="phantoms in all splits")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    quiet_libraries()
    data = DataConfig(name="phantoms", options={"count": options.count})
    config = run_config(
        backbone="blip-nano", strategy="full", data="phantoms",
        overrides=[
            f"data.count={options.count}", f"train.num_train_epochs={options.epochs}", "train.per_device_train_batch_size=16",
            "train.learning_rate=2e-3", "generation.max_new_tokens=64",
        ],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        execute(config, work / "run", plugins=PLUGINS)
        full = locate_adapter(work / "run")
        examples = load_data(data, plugins=PLUGINS, splits=("test",)).split("test")
        reference = _scored(full, examples)
        rows = [_row("everything", "fp32", adapter_bytes(read_manifest(full)), reference, None)]
        plans = [ExtractOptions(keep=KEPT[0], images=0)]
        plans += [ExtractOptions(keep=keep, dtype=dtype, images=0) for dtype in ("bf16", "int8") for keep in KEPT]
        plans += [ExtractOptions(rank=rank, dtype="int8", images=0) for rank in RANKS]
        for number, plan in enumerate(plans):
            made = extract_adapter(full, work / f"{number}", plugins=PLUGINS, options=plan)
            kept = f"rank {plan.rank}" if plan.rank else f"{plan.keep:.0%} of the energy"
            rows.append(_row(kept, plan.dtype, made.bytes, _scored(work / f"{number}", examples), reference))
            print(rows[-1])
    record = {
        "settings": {"images": round(options.count * 0.8), "epochs": options.epochs}, "test_images": len(examples),
        "rows": rows, "hardware": asdict(hardware.describe()), "versions": hardware.versions(),
        "git": hardware.git_revision(),
    }  # fmt: skip
    options.out.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def _scored(folder: Path, examples: Any) -> Evaluation:
    loaded = load_adapter(folder, plugins=PLUGINS)
    return evaluation(inference_of(loaded), loaded, examples, plugins=PLUGINS)


def _row(kept: str, dtype: str, size: int, found: Evaluation, reference: Evaluation | None) -> dict[str, Any]:
    interval = found.intervals["cider"]
    row = {"kept": kept, "dtype": dtype, "bytes": size, "cider": [found.metrics["cider"], interval.low, interval.high]}
    difference = None
    if reference is not None:
        resampling = Resampling(found.captions.group_names())
        ours, theirs = found.scores.measured["cider"], reference.scores.measured["cider"]
        apart = resampling.difference([ours], [theirs], "cider")
        difference = [apart.value, apart.interval.low, apart.interval.high]
    return row | {"difference": difference}


if __name__ == "__main__":
    main()
