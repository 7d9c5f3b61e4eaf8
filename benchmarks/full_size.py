"""Every preset on a model of the published size: train a few steps, save, load again, and demand identical logits.

PiSSA's are close, since it is saved as LoRA for the base as it was.

    python benchmarks/full_size.py                          # BLIP-base's size, synthetic weights, 384 px
    python benchmarks/full_size.py --layers 2 --width 96 --image-size 64
    python benchmarks/full_size.py --backbone vit-gpt2 --image-size 224 --strategies encoder-frozen qlora
    python benchmarks/full_size.py --folder /models/blip-image-captioning-base

Prints a line for each preset with its seconds a step and peak memory so far; exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from synthetic_models import WRITERS

import medgraft
from medgraft import hardware
from medgraft.backbones import Backbone, TextBatch
from medgraft.benchmark import execute, why_unsupported
from medgraft.config import run_config
from medgraft.data import open_image
from medgraft.data.phantoms import write_phantoms
from medgraft.plugin import PluginManager
from medgraft.quiet import quiet_libraries
from medgraft.strategies import changes_base, get_strategy


@torch.no_grad()
def logits(backbone: Backbone, images: Sequence[Path]) -> torch.Tensor:
    """Logits of one fixed caption for each image."""
    backbone.model.eval()
    text = backbone.text_batch(["axial ct of the chest showing a nodule."] * len(images), prompt="", max_tokens=64)
    where = hardware.device()
    backbone.model.to(where)  # an adapter is loaded onto the CPU
    text = TextBatch(text.input_ids.to(where), text.attention_mask.to(where), text.labels.to(where))
    with hardware.autocast(where, hardware.compute_dtype()):  # as in the run
        features = backbone.encode(backbone.pixel_values([open_image(path) for path in images]).to(where))
        return backbone.decode(features, text)[1].cpu()


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every preset gives the same logits after loading."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=sorted(WRITERS), default="blip")
    parser.add_argument("--folder", type=Path, help="a checkpoint folder instead of synthetic weights")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--strategies", nargs="*", help="these presets only")
    options = parser.parse_args(argv)
    quiet_libraries()
    plugins = PluginManager.from_environment()
    work = Path(tempfile.mkdtemp())
    failures = 0
    try:
        folder = options.folder or WRITERS[options.backbone](
            work / "model", layers=options.layers, width=options.width, image_size=options.image_size
        )
        write_phantoms(work / "phantoms", count=24)
        images = sorted((work / "phantoms/train/radiology/images").iterdir())[:2]
        for strategy in options.strategies or plugins.names("strategy"):
            plan = get_strategy(strategy, plugins=plugins)
            if not plan.trains or why_unsupported(f"{options.backbone}:{folder}", plan, plugins=plugins) is not None:
                continue
            config = run_config(
                backbone=f"{options.backbone}:{folder}", strategy=strategy, data=f"roco:{work / 'phantoms'}",
                overrides=[f"train.max_steps={options.steps}", f"train.per_device_train_batch_size={options.batch_size}"],
            )  # fmt: skip
            out = work / "adapter"
            run = execute(config, out, plugins=plugins, evaluate=False, checkpoints=False)
            before = logits(run.backbone, images)
            record = run.record
            del run
            gc.collect()
            loaded = medgraft.load_adapter(out)
            after = logits(loaded.backbone, images)
            found = "identical" if torch.equal(before, after) else "DIFFERENT"
            assert loaded.manifest is not None
            if changes_base(loaded.manifest.strategy_settings) and torch.allclose(before, after, rtol=2e-2, atol=2e-2):
                found = "close"  # it is saved as LoRA for the base as it was
            failures += found == "DIFFERENT"
            print(
                f"{strategy:<15} {found:<10} {record.seconds_per_step:6.2f} s/step  "
                f"{(record.peak_memory_bytes or 0) / 2**30:5.1f} GiB so far  {record.trainable_parameters:>12,} trained  "
                f"{(record.adapter_bytes or 0) / 2**20:8.1f} MiB",
                flush=True,
            )
            shutil.rmtree(out)
            gc.collect()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
