"""What each kernel saves of a training step: all on, all but one, and none, on a BLIP with synthetic weights.

    python benchmarks/speed/kernel_ablation.py                 # BLIP-base's size
    python benchmarks/speed/kernel_ablation.py --layers 2 --width 96 --image-size 64 --steps 3

Steps of all variants alternate within one process, so that they meet the same state of the machine, and each variant has a
model of its own. Writes the medians to `--out` and prints a table: the share of a step that a kernel saves, which is how much
longer a step takes without it. A kernel stays that saves 5 % in two strategies or 10 % in one.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from medgraft import hardware
from medgraft.acceleration import KERNELS
from medgraft.data import open_image
from medgraft.data.phantoms import write_phantoms
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.quiet import quiet_libraries
from medgraft.strategies import get_strategy
from medgraft.training import CaptioningModule

HERE = Path(__file__).parent
STRATEGIES = ("encoder-frozen", "full", "lora-decoder", "lora", "qlora-decoder", "qlora", "lora-int8")
CAPTIONS = (
    "axial ct of the chest showing a nodule in the left upper lobe.", "normal brain mri.",
    "chest x-ray with a large left-sided pleural effusion and cardiomegaly (arrow).", "ultrasound of the liver with a cyst.",
)  # fmt: skip
KEEPS, KEEPS_ALONE = 0.05, 0.10


class Variant:
    """A model with some of the kernels, and its optimiser."""

    def __init__(self, source: str, strategy: str, kernels: Any, batch: dict[str, torch.Tensor], stored: bool):
        plugins = PluginManager()
        plan = get_strategy(strategy, plugins=plugins)
        self.dtype = torch.bfloat16 if hardware.bf16_supported(hardware.device().type) else torch.float32
        backbone, applied, acceleration = prepare_model(source, plan, plugins=plugins, dtype=self.dtype, kernels=kernels)
        self.installed = acceleration.installed
        self.module = CaptioningModule(backbone, applied, prefix=backbone.seams[0] if stored else None).train()
        self.batch = dict(batch)
        if stored:  # as a run has them that reuses what a frozen encoder makes of an image
            with torch.no_grad(), hardware.autocast(hardware.device(), self.dtype):
                features = backbone.encode(self.batch.pop("pixel_values"))
            self.batch |= {"features": features.to(self.dtype), "feature_rows": torch.arange(len(features))}
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(self) -> float:
        """Seconds of one step."""
        where = hardware.device()
        start = time.perf_counter()
        with hardware.autocast(where, self.dtype):
            loss = self.module(**self.batch)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def measure(source: str, strategy: str, batch: dict[str, torch.Tensor], steps: int, warm: int) -> dict[str, Any]:
    """Median seconds of a step: `all`, `none`, and without each kernel that is installed."""
    plan = get_strategy(strategy, plugins=PluginManager())
    stored = plan.vision.mode == "frozen"
    variants = {
        name: Variant(source, strategy, kernels, batch, stored) for name, kernels in (("all", "auto"), ("none", "none"))
    }
    installed = variants["all"].installed
    for name in installed:
        variants[f"without {name}"] = Variant(source, strategy, tuple(k for k in installed if k != name), batch, stored)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warm + steps):
        for name, variant in variants.items():
            took = variant.step()
            if number >= warm:
                seconds[name].append(took)
    return {"installed": installed, "stored_features": stored, "seconds": {name: median(s) for name, s in seconds.items()}}


def table(results: dict[str, Any]) -> str:
    """Kernel x strategy: the share of a step that it saves, as Markdown."""
    lines = [f"| kernel | {' | '.join(results)} | |", f"|---|{'---:|' * len(results)}---|"]
    for kernel in (kernel.name for kernel in KERNELS):
        shares = [_share(run["seconds"], kernel) for run in results.values()]
        known = [share for share in shares if share is not None]
        pays = sum(share >= KEEPS for share in known) >= 2 or any(share >= KEEPS_ALONE for share in known)
        cells = " | ".join("" if share is None else f"{100 * share:.1f} %" for share in shares)
        lines.append(f"| {kernel} | {cells} | {'stays' if pays else 'too little' if known else ''} |")
    ratios = [run["seconds"]["none"] / run["seconds"]["all"] for run in results.values()]
    lines.append(f"| all, times as fast | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | |")
    return "\n".join(lines)


def _share(seconds: dict[str, float], kernel: str) -> float | None:
    without = seconds.get(f"without {kernel}")
    return None if without is None else 1 - seconds["all"] / without


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results/speed/kernels.json")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warm", type=int, default=2, help="steps before those that count")
    parser.add_argument("--strategies", nargs="*", default=STRATEGIES)
    options = parser.parse_args(argv)
    sys.path.insert(0, str(HERE.parent))
    from synthetic_models import write_blip

    quiet_libraries()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = write_blip(Path(work) / "blip", layers=options.layers, width=options.width, image_size=options.image_size)
        write_phantoms(Path(work) / "phantoms", count=2 * options.batch_size)
        backbone = PluginManager().get("backbone", "blip").load(str(folder))
        paths = sorted(Path(work).glob("phantoms/train/radiology/images/*"))
        images = [open_image(paths[i % len(paths)]) for i in range(options.batch_size)]
        text = backbone.text_batch([CAPTIONS[i % len(CAPTIONS)] for i in range(options.batch_size)])
        batch = {
            "input_ids": text.input_ids, "attention_mask": text.attention_mask, "labels": text.labels,
            "pixel_values": backbone.pixel_values(images),
        }  # fmt: skip
        batch = {name: tensor.to(hardware.device()) for name, tensor in batch.items()}
        for strategy in options.strategies:
            results[strategy] = measure(f"blip:{folder}", strategy, batch, options.steps, options.warm)
            print(
                strategy, {name: round(s, 4) for name, s in results[strategy]["seconds"].items()}, file=sys.stderr, flush=True
            )
            gc.collect()
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "strategies")}
    record = {
        "settings": settings,
        "hardware": asdict(hardware.describe()),
        "versions": hardware.versions(),
        "strategies": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
