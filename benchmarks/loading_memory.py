"""Measure the peak memory of loading and captioning with a large model in bf16 shards, on the CPU.

    python benchmarks/loading_memory.py --folder /tmp/blip2 --out benchmarks/results/loading_memory.json

Writes a BLIP-2 with OPT 2.7B of the published shape with random weights (7.5 GB) into the folder, if it is not there, and
deletes it at the end unless --keep is given. A process of its own loads it and captions an image. Peaks are those of the whole
process (VmHWM), with Python and its libraries, and with the pages of files that are mapped into memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

LIMIT = 1.15  # of the size of the weights' files


def measure(folder: str, dtype: str) -> dict[str, object]:
    """In this process: load, caption a grey image, and report bytes and seconds."""
    from PIL import Image

    import medgraft
    from medgraft.config import GenerationConfig
    from medgraft.hardware import peak_memory_bytes
    from medgraft.inference import captioner_for

    start, found = time.perf_counter(), {"libraries_bytes": 0}
    import medgraft.loading  # what loading imports

    found["libraries_bytes"] = peak_memory_bytes()
    backbone = medgraft.load_backbone(f"blip2:{folder}", dtype=dtype)
    found |= {"loaded_bytes": peak_memory_bytes(), "load_seconds": round(time.perf_counter() - start, 1)}
    start = time.perf_counter()
    options = GenerationConfig(max_new_tokens=8)
    caption = captioner_for(backbone, prompt=None, dtype=backbone.computes_in).caption([Image.new("RGB", (224, 224))], options)
    found |= {"captioned_bytes": peak_memory_bytes(), "caption_seconds": round(time.perf_counter() - start, 1)}
    return {**found, "dtype": dtype, "characters": len(caption.captions[0])}


def main() -> None:
    """Parse, write, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="do not delete the model")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(str(options.folder), options.measure)))
        return
    from synthetic_models import write_blip2_shards

    from medgraft.hardware import describe, versions

    if not (options.folder / "config.json").is_file():
        write_blip2_shards(options.folder)
    size = sum(file.stat().st_size for file in options.folder.glob("*.safetensors"))
    command = [sys.executable, __file__, "--folder", str(options.folder), "--out", str(options.out), "--measure", "bf16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    run = json.loads(done.stdout.splitlines()[-1])
    run["peak_of_size"] = round(run["captioned_bytes"] / size, 3)
    record = {"files_bytes": size, "limit": LIMIT, "run": run, "hardware": asdict(describe()), "versions": versions()}
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(run, indent=1))
    if not options.keep:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
