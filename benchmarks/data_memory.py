"""Peak memory of reading, checking and training on few and on many images: a folder with a table, parquet, webdataset tars.

    python benchmarks/data_memory.py                      # 1,000 and 100,000 images
    python benchmarks/data_memory.py --counts 1000 10000

Images are 32 px PNGs with captions of 25 words, made here; the backbone is a BLIP of 2 layers with random weights. Each run is
a process of its own that reads and checks the data, computes their fingerprint and trains a few steps. `peak` is the most
memory of the process, with the pages of files that it has mapped; `anonymous` is the most without them, which the system
cannot take back. The pixel cache is off, as it grows to its own limit (`train.pixel_cache_gb`) with every image seen.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "data-memory.json"
FORMATS = ("csv", "parquet", "webdataset")
_TEXT = (
    "the chest radiograph shows a small pleural effusion in left lower lobe without evidence of pneumothorax heart size is "
    "normal and there no focal consolidation mediastinal contours are unremarkable axial contrast enhanced computed tomography"
)
_SHARD = 10_000  # images a parquet file or tar
_STEPS = 8


def main() -> None:
    """Write the data, run each count and format, print and store the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--strategy", default="lora", help="encoder-frozen also stores the features of all training images")
    parser.add_argument("--work", type=Path, help="folder to keep the data in; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(json.loads(options.child))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        found = [_measure(work, kind, count, options.strategy) for kind in options.formats for count in options.counts]
    options.out.write_text(json.dumps({"strategy": options.strategy, "steps": _STEPS, "runs": found}, indent=1) + "\n")


def _measure(work: Path, kind: str, count: int, strategy: str) -> dict[str, object]:
    """The figures of one run, which is a process of its own; the data are written if they are not there."""
    from synthetic_models import write_blip

    backbone, folder = work / "backbone", work / f"{kind}-{count}"
    if not backbone.exists():
        write_blip(backbone, layers=2, width=64, image_size=64)
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        {"csv": _write_table, "parquet": _write_parquet, "webdataset": _write_tars}[kind](folder, count)
        (folder / "complete").touch()
    path = {"csv": f"csv:{folder / 'data.csv'}", "parquet": f"hf:{folder}", "webdataset": f"webdataset:{folder}"}[kind]
    with tempfile.TemporaryDirectory(dir=work) as cache:
        job = {"backbone": f"blip:{backbone}", "data": path, "strategy": strategy, "out": f"{cache}/out"}
        own = {"MEDGRAFT_CACHE": cache, "MEDGRAFT_FEATURES": f"{cache}/features", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--child", json.dumps(job)]
        done = subprocess.run(command, env=os.environ | own, stdout=subprocess.PIPE, text=True, check=True)
    result = {"format": kind, "images": count, **json.loads(done.stdout.splitlines()[-1])}
    print(json.dumps(result), flush=True)
    return result


def _child(job: dict[str, str]) -> None:
    """One run; prints its figures as JSON."""
    memory = _Memory()
    start = time.perf_counter()
    from medgraft.benchmark import execute
    from medgraft.config import run_config
    from medgraft.plugin import PluginManager

    settings = {"max_steps": _STEPS, "per_device_train_batch_size": 16, "bf16": "false", "pixel_cache_gb": 0}
    config = run_config(
        backbone=job["backbone"], strategy=job["strategy"], data=job["data"],
        overrides=[f"train.{key}={value}" for key, value in settings.items()],
    )  # fmt: skip
    memory.imported = memory.now("VmHWM")
    record = execute(config, Path(job["out"]), plugins=PluginManager(), evaluate=False).record
    phases = {name: round(value, 1) for name, value in record.phase_seconds.items() if value >= 0.1}
    print(json.dumps({"seconds": round(time.perf_counter() - start, 1), **memory.figures(), "phases": phases}))


class _Memory:
    """Memory of this process in MiB, from /proc; a thread samples what the system keeps no peak of."""

    def __init__(self) -> None:
        self.imported = 0.0
        self._anonymous = 0.0
        threading.Thread(target=self._sample, daemon=True).start()

    def figures(self) -> dict[str, float]:
        """Peaks of everything, and of what is not mapped from files."""
        peak = self.now("VmHWM")
        return {"peak_mib": round(peak, 1), "anonymous_mib": round(self._anonymous, 1), "import_mib": round(self.imported, 1)}

    def now(self, *fields: str) -> float:
        """The sum of these fields of /proc/self/status."""
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return sum(int(words[1]) for words in lines if words and words[0].rstrip(":") in fields) / 1024

    def _sample(self) -> None:
        while True:
            self._anonymous = max(self._anonymous, self.now("RssAnon", "RssShmem"))
            time.sleep(0.02)


def _samples(count: int) -> Iterator[tuple[str, str, bytes, str]]:
    """Id, split, PNG and caption of each image; no two images are alike."""
    from PIL import Image

    draw, words = random.Random(0), _TEXT.split()
    for number in range(count):
        buffer = io.BytesIO()
        Image.frombytes("L", (8, 8), draw.randbytes(64)).resize((32, 32), Image.Resampling.NEAREST).save(buffer, "PNG")
        split = "test" if number % 10 == 9 else "validation" if number % 10 == 8 else "train"
        yield f"image_{number:06}", split, buffer.getvalue(), " ".join(draw.choices(words, k=25))


def _write_table(folder: Path, count: int) -> None:
    with (folder / "data.csv").open("w", encoding="utf-8") as table:
        table.write("image,caption,split\n")
        for name, split, png, caption in _samples(count):
            image = folder / f"images/{name[-6:-3]}/{name}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(png)
            table.write(f"{image.relative_to(folder)},{caption},{split}\n")


def _shards(count: int) -> Iterator[tuple[str, list[tuple[str, bytes, str]]]]:
    """Name and samples of each shard; samples of a split are together."""
    waiting: dict[str, list[tuple[str, bytes, str]]] = {"train": [], "validation": [], "test": []}
    written = 0
    for name, split, png, caption in _samples(count):
        waiting[split].append((name, png, caption))
        if len(waiting[split]) == _SHARD:
            yield f"{split}-{written:05}", waiting[split]
            waiting[split], written = [], written + 1
    for number, (split, rows) in enumerate(waiting.items(), start=written):
        if rows:
            yield f"{split}-{number:05}", rows


def _write_parquet(folder: Path, count: int) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    for shard, rows in _shards(count):
        columns = {"image": [{"bytes": png, "path": f"{n}.png"} for n, png, _ in rows], "caption": [row[2] for row in rows]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{shard}.parquet")


def _write_tars(folder: Path, count: int) -> None:
    for shard, rows in _shards(count):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for name, png, caption in rows:
                for suffix, content in (("png", png), ("txt", caption.encode())):
                    entry = tarfile.TarInfo(f"{name}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main()
