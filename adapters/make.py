"""Train the adapters that ship, on the quickstart's data at the quickstart's rates, and write the index: `make adapters`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from medgraft.adapter import locate_adapter, read_manifest
from medgraft.benchmark import read_record, run_suite
from medgraft.config import load_suite
from medgraft.plugin import PluginManager
from medgraft.progress import log_to_stderr

HERE = Path(__file__).parent
SHIPPED = ("lora", "lora-decoder", "qlora")
TRAIN = {"num_train_epochs": 4.0, "per_device_train_batch_size": 32}  # longer than the quickstart, which is in a hurry


def main() -> None:
    """Run the quickstart suite, longer, with the shipped strategies and copy the packages here, each with its record."""
    suite = load_suite(HERE.parent / "benchmarks/suites/quickstart.toml")
    decoder = {"lora-decoder": suite.overrides["lora"]}
    overrides = {name: changes for name, changes in (suite.overrides | decoder).items() if name in SHIPPED}
    train = suite.train.model_copy(update=TRAIN)
    suite = suite.model_copy(update={"strategies": SHIPPED, "overrides": overrides, "train": train})
    with tempfile.TemporaryDirectory() as work:
        with log_to_stderr():
            records = run_suite(suite, Path(work), plugins=PluginManager.from_environment())
        for record in records:
            if record.strategy not in SHIPPED:  # a baseline's
                continue
            if record.status != "ok":
                sys.exit(f"{record.strategy} failed: {record.error}")
            folder = HERE / f"blip-nano-{record.strategy}"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(locate_adapter(Path(work) / str(record.adapter)), folder)
            kept = record.model_copy(update={"adapter": folder.name})
            (folder / "record.json").write_text(kept.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_index()


def write_index() -> None:
    """Write README.md from the manifests."""
    lines = [
        "# Adapters that ship",
        "",
        "Trained on phantoms (synthetic radiology) by `make adapters`, small enough for git; each folder has its card and the",
        "record of its run. They show how adapters are made and loaded. They know nothing of real radiographs.",
        "",
        "| folder | strategy | trained parameters | weights | CIDEr | training |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for folder in sorted(path for path in HERE.iterdir() if (path / "medgraft.json").is_file()):
        manifest, record = read_manifest(folder), read_record(folder / "record.json")
        cells = (
            f"[{folder.name}]({folder.name})", manifest.strategy, f"{record.trainable_parameters:,}",
            f"{(record.adapter_bytes or 0) / 1024:.0f} KB", f"{manifest.metrics['cider']:.3f}",
            f"{record.training_seconds:.0f} s",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    (HERE / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
