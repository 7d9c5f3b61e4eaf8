"""medgraft against a tutorial's Trainer script on one GPU, in minutes: `python benchmarks/gpu/race.py`.

Writes a BLIP-base with synthetic weights, Qwen2.5-VL at a sixth of its depth, and phantoms as JPEGs of ROCO's size; starts one
process for each side, which do their jobs in turn while the other waits; and puts the record into `--out` after every job, so
that nothing is lost when the time is over. What then remains is listed there under `not_run`. Without a GPU, `--small` runs
the same at a size that a CPU does in a minute.

The Trainer's side has its images decoded by `--workers` processes (`trainer`), and for three strategies, as tutorials leave it,
in the training process (`tutorial`). medgraft has its own defaults. Every job begins without stored features.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
STRATEGIES = ("encoder-frozen", "full", "lora", "lora-decoder", "qlora", "decoder-frozen", "qlora-decoder")
TUTORIALS = ("encoder-frozen", "full", "lora")  # run with images decoded in the training process too
RATES = {"full": 1e-5, "encoder-frozen": 1e-5, "decoder-frozen": 1e-5}
SCRIPTS = {"trainer": "trainer_script", "medgraft": "medgraft_side"}
READY_SECONDS = 120  # until a side has imported its libraries
WORTHWHILE = 8  # seconds that have to be left for another job


@dataclass(frozen=True)
class Size:
    """How much there is to do."""

    layers: int
    width: int
    image_size: int
    jpeg_size: int
    batch_size: int
    steps: int  # an epoch
    test_images: int
    max_new_tokens: int
    qwen: dict[str, int]
    qwen_batch_size: int
    qwen_steps: int
    product: int  # rows of the matrices whose product is timed


WHOLE = Size(12, 768, 384, 640, 32, 12, 96, 20, {"layers": 6, "image_size": 448}, 8, 6, 8192)
SMALL = Size(2, 64, 64, 96, 4, 2, 4, 5, {"width": 128, "vision_width": 80, "layers": 2, "image_size": 56}, 2, 2, 512)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu-race.json"))
    parser.add_argument("--work", type=Path, help="keep models and images in this folder, and use those that are there")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--budget-seconds", type=float, default=390)
    parser.add_argument("--job-seconds", type=float, default=80, help="after which a job is given up")
    parser.add_argument("--workers", type=int, default=8, help="processes that decode images for the Trainer")
    parser.add_argument("--strategies", nargs="*", default=STRATEGIES)
    parser.add_argument("--no-qwen", action="store_true")
    return parser.parse_args()


class Side:
    """A process that does the jobs of one side, started anew after one that failed."""

    def __init__(self, name: str, work: Path):
        self.name, self.work = name, work
        self.process: subprocess.Popen[str] | None = None
        self.log = work / f"{name}.log"
        self.log.unlink(missing_ok=True)

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        }  # fmt: skip
        command = [sys.executable, str(HERE.parent / "speed" / f"{SCRIPTS[self.name]}.py"), "serve"]
        with self.log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, args=(self.process, self.lines), daemon=True)
        self.reader.start()
        self.is_ready = False

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        process.stdout.close()
        lines.put(None)

    def ready(self, seconds: float) -> dict[str, Any]:
        """Wait for its libraries; {"error": ...} if they do not come."""
        if self.process is None:
            self.start()
        if self.is_ready:
            return {}
        answer = self._answer(seconds)
        self.is_ready = "error" not in answer
        return answer

    def do(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The result of a job, or {"error": ...}."""
        path = self.work / f"{self.name}-job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        before = self.ready(READY_SECONDS)
        if "error" in before:
            self.stop()
            return before
        assert self.process is not None and self.process.stdin is not None
        with suppress(BrokenPipeError):  # if it ended meanwhile, which reading tells
            print(path, file=self.process.stdin, flush=True)
        answer = self._answer(seconds)
        if "error" in answer:
            self.stop()
        return answer

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return {"error": f"No answer in {seconds:.0f} s."}
        if line is None:
            assert self.process is not None
            last = (self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
            return {"error": f"The process ended with exit status {self.process.wait()}; its last line was {last[:200]!r}."}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End it and its workers."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):  # if all have ended already
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process = None


def machine(rows: int) -> dict[str, Any]:
    """Operations and bytes a second of this machine: medians of bf16 matrix products and of copies, read and write counted."""
    from medgraft import hardware
    from medgraft.benchmark.estimate import measured_flops

    if hardware.device().type == "cpu":
        return {"flops_per_second": measured_flops(0.5), "copy_bytes_per_second": None, "product": 2048}
    product, copy = _product_seconds(rows), _copy_seconds()
    torch.cuda.empty_cache()
    return {"flops_per_second": 2 * rows**3 / product, "copy_bytes_per_second": 2 * (1 << 30) / copy, "product": rows}


def _product_seconds(rows: int) -> float:
    a, b = (torch.randn(rows, rows, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return _seconds(lambda: torch.mm(a, b))


def _copy_seconds() -> float:
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    return _seconds(lambda: target.copy_(source))


def _seconds(work: Any) -> float:
    """Median of 30, after five, by the GPU's clock."""
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(35)]
    for start, end in pairs:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(end) / 1e3 for start, end in pairs[5:])


def prepare(work: Path, size: Size, qwen: bool) -> list[tuple[str, str]]:
    """Write models and images unless `work` has them; images with their captions."""
    from synthetic_models import write_blip, write_qwen

    from medgraft.data.phantoms import write_phantoms
    from medgraft.data.roco import Roco

    count = size.batch_size * size.steps + size.test_images
    done = work / "prepared"
    if not done.exists():
        write_phantoms(work / "phantoms", count=count)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda path: _enlarge(path, size.jpeg_size), (work / "phantoms").glob("*/radiology/images/*.jpg")))
        write_blip(work / "blip", layers=size.layers, width=size.width, image_size=size.image_size)
        if qwen:
            write_qwen(work / "qwen", **size.qwen)
        done.touch()
    return [(str(example.image), example.captions[0]) for example in Roco().read(work / "phantoms")]


def _enlarge(path: Path, side: int) -> None:
    Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC).save(path, quality=92)


def jobs(
    options: argparse.Namespace, size: Size, work: Path, pairs: list[tuple[str, str]]
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(run, column, side, job), those first that matter most."""
    from medgraft import hardware

    images = size.batch_size * size.steps
    common = {
        "model": str(work / "blip"), "train": pairs[:images], "test": [path for path, _ in pairs[images:]],
        "batch_size": size.batch_size, "epochs": 3, "bf16": hardware.bf16_supported(hardware.device().type), "seed": 0,
        "max_new_tokens": size.max_new_tokens, "caption_times": 2, "workers": options.workers, "out": str(work / "out"),
    }  # fmt: skip
    short = {"strategy": "lora", "learning_rate": 1e-4, "epochs": 1, "test": common["test"][: size.batch_size]}
    for side in SCRIPTS:
        yield "warm-up", side, side, {**common, **short, "train": pairs[: 3 * size.batch_size]}
    blip = {s: {**common, "strategy": s, "learning_rate": RATES.get(s, 1e-4)} for s in options.strategies}
    for number, (name, job) in enumerate(blip.items()):
        counted = {**job, "count_flops": not name.startswith("qlora")}  # torch does not count quantised products
        both = [("trainer", counted), ("medgraft", job)]
        for side, settings in both if number % 2 == 0 else reversed(both):
            yield name, side, side, settings
        if number == min(3, len(blip) - 1) and not options.no_qwen:
            yield from _qwen_jobs(options, size, work, {**common, "train": pairs[: size.qwen_batch_size * size.qwen_steps]})
    for name in TUTORIALS:
        if name in blip:
            yield name, "tutorial", "trainer", {**blip[name], "workers": 0, "epochs": 2, "test": []}


def _qwen_jobs(
    options: argparse.Namespace, size: Size, work: Path, common: dict[str, Any]
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """LoRA on the attention of Qwen2.5-VL's language model."""
    job = {
        **common, "backbone": "qwen-vl", "model": str(work / "qwen"), "side": size.qwen["image_size"], "test": [],
        "batch_size": size.qwen_batch_size, "epochs": 2, "strategy": "lora-decoder", "learning_rate": 1e-4,
        "strategy_options": {"text.roles": ["attn"]},
    }  # fmt: skip
    yield "qwen", "medgraft", "medgraft", job
    if torch.cuda.is_available():  # its kernels are triton's
        yield "qwen", "liger", "trainer", {**job, "liger": True}
    yield "qwen", "trainer", "trainer", job


def main() -> int:
    """Run what there is time for."""
    from gpu.table import gpu_table

    began = time.perf_counter()
    options = parse()
    size = SMALL if options.small else WHOLE
    work = options.work or Path(tempfile.mkdtemp(prefix="medgraft-gpu-race-"))
    work.mkdir(parents=True, exist_ok=True)
    sides = {name: Side(name, work) for name in SCRIPTS}
    try:
        for side in sides.values():
            side.start()
        record = _race(options, size, work, sides, began)
    finally:
        for side in sides.values():
            side.stop()
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\n{gpu_table(options.out)}")
    for name, columns in record["runs"].items():
        for column, run in columns.items():
            if "error" in run:
                print(f"{name}, {column}: {run['error']}")
    return 0


def _race(options: argparse.Namespace, size: Size, work: Path, sides: dict[str, Side], began: float) -> dict[str, Any]:
    from medgraft import hardware
    from medgraft.quiet import quiet_libraries

    quiet_libraries()
    pairs = prepare(work, size, not options.no_qwen)
    bytes_an_image = sum(Path(path).stat().st_size for path, _ in pairs) // len(pairs)
    for name, side in sides.items():
        _tell(f"{name} {side.ready(READY_SECONDS)}", began)
    record: dict[str, Any] = {
        "hardware": asdict(hardware.describe()), "versions": hardware.versions() | {"liger_kernel": _version("liger_kernel")},
        "git": hardware.git_revision(), "machine": machine(size.product), "image_size": size.image_size,
        "jpeg": {"side": size.jpeg_size, "bytes": bytes_an_image}, "model": f"BLIP of width {size.width}, synthetic weights",
        "batch_size": size.batch_size, "steps_an_epoch": size.steps, "test_images": size.test_images,
        "max_new_tokens": size.max_new_tokens, "workers": options.workers, "qwen_batch_size": size.qwen_batch_size,
        "qwen_layers": size.qwen["layers"],
        "bf16": hardware.bf16_supported(hardware.device().type), "runs": {}, "not_run": [],
    }  # fmt: skip
    _tell(f"machine {record['machine']}", began)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for number, (name, column, side, job) in enumerate(jobs(options, size, work, pairs)):
        left = options.budget_seconds - (time.perf_counter() - began)
        if left < WORTHWHILE:
            record["not_run"].append(f"{name}, {column}")
            continue
        start = time.perf_counter()
        features = work / "features" / str(number)
        result = sides[side].do({**job, "features_folder": str(features)}, min(left, options.job_seconds))
        shutil.rmtree(features, ignore_errors=True)
        result |= {"epochs": job["epochs"], "wall_seconds": time.perf_counter() - start}
        columns = record["runs"].setdefault(name, {})
        columns[column] = result
        _compare_captions(columns)
        record["seconds"] = time.perf_counter() - began
        _write(options.out, record)
        steps = result.get("device_step_seconds") or result.get("step_seconds") or []
        told = f"{median(steps[-size.steps :]):.3f} s a step" if steps else result["error"]
        _tell(f"{name:<15} {column:<9} {result['wall_seconds']:5.1f} s, {told}", began)
    record["seconds"] = time.perf_counter() - began
    _write(options.out, record)
    return record


def _compare_captions(columns: dict[str, dict[str, Any]]) -> None:
    """Once both sides have captioned, what share of the captions is the same on both, instead of the captions."""
    both = [columns.get(side, {}).get("captions", []) for side in SCRIPTS]
    if all(both):
        same = sum(a == b for a, b in zip(*both, strict=True)) / len(both[0])
        for side in SCRIPTS:
            columns[side] |= {"captions": [], "same_captions": same}


def _write(out: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(out)


def _tell(text: str, began: float) -> None:
    print(f"{time.perf_counter() - began:6.1f} s  {text}", flush=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
