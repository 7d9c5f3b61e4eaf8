"""Mutate adapter packages at random and load each: it must be refused in one line, or load and compute what it says.

    python tests/adapter/fuzz_packages.py --count 10000 --seed 0

Every mutated package is loaded in a process of its own. Prints a table of outcomes for each kind of mutation, then the faults:
another exception than medgraft's, no answer within 2 s of CPU time (or 60 s in all), over 1 GiB of memory more than loading
takes, a file opened outside the package, NaN, or other logits than the original's from a package whose digests agree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import pickle
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import BlipForConditionalGeneration

import medgraft
from medgraft.adapter import MANIFEST, locate_adapter
from medgraft.adapter.manifest import ADAPTER_CONFIG as CONFIG
from medgraft.adapter.manifest import ADAPTER_WEIGHTS as WEIGHTS
from medgraft.adapter.manifest import FILES, TENSORS, TRAINED_ON
from medgraft.benchmark import execute
from medgraft.config import run_config
from medgraft.conversion import ExtractOptions, extract_adapter
from medgraft.data.phantoms import write_phantoms
from medgraft.errors import MedgraftError
from medgraft.escaping import one_line
from medgraft.plugin import PluginManager
from medgraft.quiet import quiet_libraries
from medgraft.testing.tiny import write_tiny_model

CPU_SECONDS, SECONDS, MEMORY = 2, 60, 1 << 30
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10_000, 10**6, 2**63, 10**400, 1e308, -1e308, 0.0, 1e-300, float("nan"), float("inf"), "",
    "x", "none", "\x00", "\x1b[2J\u202e", "\ud800", "a" * 300, "a" * 10**6, "..", "../secret.txt", "/etc/passwd", "(a+)+$",
    "(.*.*)*x", "(.*)*", "((((", ".*", "all-linear", "pissa_niter_100000000", "pissa", "eva", "os.system", [], [None], [1, 2],
    ["x"], ["(a+)+$"], ["x"] * 10**5, [[0, 2]] * 1000, {}, {"x": 1}, {"query": 10**6}, {"(.*.*)*x": 8}, "XLORA", "IA3", "LOHA",
    "PROMPT_TUNING", "VERA", "BOFT", "CAUSAL_LM", "nf4", "int8",
)  # fmt: skip
SETTINGS: tuple[dict[str, Any], ...] = (
    {"target_modules": [f"x.{i}.y" for i in range(4999)]}, {"rank_pattern": {f"x{i}": 2 for i in range(999)}},
    {"target_modules": "(.*)*x"}, {"target_modules": "(a|a|b)*" * 20}, {"target_modules": "text_decoder.*(.*.*)*\\d+x"},
    {"exclude_modules": "(.*.*)*x"}, {"rank_pattern": {"(.*.*)*x": 8}}, {"alpha_pattern": {"query": 1e308}}, {"r": 10_000},
    {"lora_alpha": 2400}, {"lora_alpha": float("nan")}, {"init_lora_weights": "pissa_niter_100000000"}, {"lora_dropout": 2},
    {"megatron_config": {"x": 1}, "megatron_core": "antigravity"}, {"layer_replication": [[0, 2]] * 1000}, {"use_dora": True},
    {"alora_invocation_tokens": [1]}, {"peft_type": "XLORA", "adapters": {"0": "/etc"}}, {"modules_to_save": ["(.*.*)*x"]},
    {"trainable_token_indices": [10**9]}, {"layers_to_transform": [0], "layers_pattern": "(.*.*)*x"}, {"lora_bias": True},
    {"corda_config": {"cache_file": "/etc/passwd"}, "init_lora_weights": "corda"}, {"loftq_config": {"loftq_iter": 10**9}},
    {"peft_type": "OFT", "num_cayley_neumann_terms": 10**9}, {"runtime_config": {"ephemeral_gpu_offload": True}},
    {"peft_type": "VBLORA", "num_vectors": 10**6, "vector_length": 10**6}, {"auto_mapping": {"parent_library": "antigravity"}},
)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A sound package: its folder, the backbone that it is for, and the logits that it gives."""

    folder: Path
    backbone: str
    logits: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """What came of loading a mutated package; `fault` says why it is none of the allowed outcomes."""

    result: str
    message: str = ""
    fault: str = ""


# Mutations: each changes a copy of a package, and returns nothing.


def flip(folder: Path, rng: random.Random) -> None:
    path = _some_file(folder, rng)
    content = bytearray(path.read_bytes())
    content[rng.randrange(rng.choice([len(content), min(len(content), 4096)]))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut_off(folder: Path, rng: random.Random) -> None:
    path = _some_file(folder, rng)
    path.write_bytes(path.read_bytes()[: rng.choice([0, 1, 7, 8, rng.randrange(path.stat().st_size), -1])])


def append(folder: Path, rng: random.Random) -> None:
    with _some_file(folder, rng).open("ab") as file:
        file.write(rng.randbytes(rng.choice([1, 100, 10**5])))


def json_field(folder: Path, rng: random.Random) -> None:
    path = rng.choice([folder / name for name in (MANIFEST, CONFIG) if (folder / name).exists()])
    values = json.loads(path.read_text())
    places = list(_places(values))
    where, key = rng.choice(places)
    match rng.randrange(4):
        case 0:
            where.pop(key)
        case 1 if isinstance(where, dict):
            where[rng.choice([f"{key}x", "../x", "x" * 10**4, "\x1b[1m"])] = where.pop(key)
        case _:
            where[key] = rng.choice(HOSTILE)
    path.write_text(json.dumps(values), encoding="utf-8", errors="surrogatepass")


def json_text(folder: Path, rng: random.Random) -> None:
    path = rng.choice([folder / name for name in (MANIFEST, CONFIG) if (folder / name).exists()])
    text = path.read_text()
    other = [
        b"", b"[]", b"null", b"{}", b"\xff\xfe" + text.encode("utf-16-le"), text.encode().replace(b"a", b"\xe4", 1),
        b"[" * 10**5, b'{"a":' * 10**5, b"\xef\xbb\xbf" + text.encode(), text.replace("{", '{"r": 6, "r": 7,', 1).encode(),
        b'{"r": ' + b"9" * 5000 + b"}", b'{"r": 1e999}', b" " * (9 << 20), text.encode() * 2,
    ]  # fmt: skip
    path.write_bytes(rng.choice(other))


def peft_setting(folder: Path, rng: random.Random) -> None:
    path = folder / CONFIG
    if path.exists():
        path.write_text(json.dumps(json.loads(path.read_text()) | rng.choice(SETTINGS)))


def header(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice([name for name in entries if name != "__metadata__"] or ["__metadata__"])
    entry = entries[name]
    new_length = None
    match rng.randrange(14):
        case 0:
            new_length = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, len(content)])
        case 1:
            entries |= {
                f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(rng.choice([1, 999, 70_000]))
            }
        case 2:
            entry["data_offsets"] = rng.choice([[0, 4], [-4, 0], [2**63, 2**63], [4, 0], [0], [0.0, 4.0], "x", None])
        case 3:
            entry["shape"] = rng.choice([[], [0], [2**62, 2**62], [-1], [1] * 100, [True], [1.5], "x", [*entry["shape"], 1]])
        case 4:
            entry["dtype"] = rng.choice(["F16", "F64", "I32", "U8", "F99", "", None, 1])
        case 5:
            entries[rng.choice(["", "x" * 10**4, "\x1b[2J", "\x00", "../../x", "base_model.model.x.lora_A.weight"])] = (
                entries.pop(name)
            )
        case 6:
            entries["__metadata__"] = rng.choice([1, [], {"a": 1}, {"a": "b" * 10**6}])
        case 7:
            entry["more"] = 1
        case 8:
            del entries[name]
        case 9:
            data = data[: len(data) // 2]
        case 10:
            entry["shape"] = list(reversed(entry["shape"]))
        case 11:
            value = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"])  # NaN, infinities
            at = rng.randrange(len(data) // 4 or 1) * 4
            data = data[:at] + value + data[at + 4 :]
        case 12:
            entries, data = rng.choice([{}, {"__metadata__": {"format": "pt"}}]), b""
        case 13:
            first, *_, last = [other for key, other in entries.items() if key != "__metadata__"]
            first["data_offsets"] = last["data_offsets"]
    text = json.dumps(entries).encode("utf-8", "surrogatepass")
    path.write_bytes((len(text) if new_length is None else new_length).to_bytes(8, "little") + text + data)


def listed_names(folder: Path, rng: random.Random) -> None:
    path = folder / MANIFEST
    if not path.exists():
        return
    values = json.loads(path.read_text())
    files = values["files"]
    match rng.randrange(4):
        case 0:
            values["files"] = {}
        case 1:
            files.pop(rng.choice(list(files)))
        case 2:
            secret = rng.choice(
                ["../secret.txt", str(folder.parent / "secret.txt"), "./" + CONFIG, "README.md", "x" * 300, "\x00"]
            )
            files[secret] = _entry(folder.parent / "secret.txt")
        case 3:
            files[rng.choice(list(files))]["bytes"] = rng.choice([0, -1, 2**62])
    path.write_text(json.dumps(values))


def swap(folder: Path, rng: random.Random) -> None:
    first, second = _some_file(folder, rng), _some_file(folder, rng)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def replace_by_no_file(folder: Path, rng: random.Random) -> None:
    path = _some_file(folder, rng)
    path.unlink()
    match rng.randrange(7):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            pass
        case other:
            path.symlink_to(["/dev/zero", "/dev/stdin", folder.parent / "secret.txt", path.name][other - 3])


def extra_file(folder: Path, rng: random.Random) -> None:
    name = rng.choice(["adapter_model.bin", CONFIG, WEIGHTS, TENSORS, TRAINED_ON])
    if name.endswith("bin") and rng.randrange(2):
        (folder / WEIGHTS).unlink(missing_ok=True)
    if not (folder / name).exists():
        (folder / name).write_bytes(pickle.dumps(_Trap()) if name.endswith("bin") else _some_file(folder, rng).read_bytes())


class _Trap:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trap",)


MUTATIONS = (
    flip, cut_off, append, json_field, json_field, json_field, json_text, peft_setting, peft_setting, header, header, header,
    listed_names, swap, replace_by_no_file, extra_file,
)  # fmt: skip


def sign(folder: Path) -> None:
    """Make the manifest's digests agree with the files, as whoever alters a package on purpose does."""
    try:
        values = json.loads((folder / MANIFEST).read_text()) if _is_plain(folder / MANIFEST) else {"files": {}}
        for name in values["files"]:
            if _is_plain(folder / name):
                values["files"][name] = _entry(folder / name)
        if values["files"]:
            (folder / MANIFEST).write_text(json.dumps(values))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # the manifest itself was mutated


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _some_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in folder.iterdir() if path.name in (MANIFEST, *FILES)))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


# Loading


@torch.no_grad()
def logits_of(folder: Path, backbone: str) -> torch.Tensor:
    """The logits of a fixed text and image with the adapter in `folder`."""
    loaded = medgraft.load_adapter(folder, backbone=backbone).backbone
    text = loaded.text_batch(["axial ct showing a cyst."], prompt="", max_tokens=32)
    size = loaded.model.config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    return loaded.decode(loaded.encode(pixels), text)[1]


def make_packages(work: Path) -> dict[str, Package]:
    """Packages for a tiny BLIP: LoRA, trained in place, the latter extracted in int8, and a plain PEFT folder."""
    backbone = write_tiny_model("blip", work / "base")
    write_phantoms(work / "phantoms", count=12)
    folders = {}
    for strategy in ("lora", "decoder-frozen"):
        config = run_config(
            backbone=backbone, strategy=strategy, data=f"roco:{work / 'phantoms'}",
            overrides=["train.max_steps=2", "train.bf16=false", "train.warmup_steps=0", "train.learning_rate=0.1"],
        )  # fmt: skip
        execute(config, work / strategy, plugins=PluginManager(), evaluate=False, checkpoints=False)
        folders[strategy] = locate_adapter(work / strategy)
    compact = ExtractOptions(rank=2, dtype="int8", images=0)
    extract_adapter(folders["decoder-frozen"], work / "int8", plugins=PluginManager(), options=compact)
    folders["int8"] = work / "int8"
    base = BlipForConditionalGeneration.from_pretrained(work / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    model.save_pretrained(work / "plain", save_embedding_layers=False)
    folders["plain PEFT"] = work / "plain"
    return {name: Package(folder, backbone, logits_of(folder, backbone)) for name, folder in folders.items()}


def watched(package: Package, folder: Path, *, allowed: bool) -> Outcome:
    """Load `folder`, a mutation of `package`, in this process. `allowed`: its logits may differ."""
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir") and isinstance(arguments[0], str | bytes | os.PathLike):
            opened.append(os.fspath(arguments[0]) if not isinstance(arguments[0], bytes) else os.fsdecode(arguments[0]))

    sys.addaudithook(watch)
    try:
        found = logits_of(folder, package.backbone)
    except MedgraftError as error:
        line = one_line(str(error))
        outcome = Outcome("refused", line, "" if len(line) < 1500 else "a message of over 1,500 characters")
    except BaseException as error:
        outcome = Outcome("error", repr(error)[:300], f"{type(error).__name__}")
    else:
        if not found.isfinite().all():
            outcome = Outcome("loaded", fault="logits are NaN or infinite")
        elif torch.allclose(found, package.logits, rtol=1e-4, atol=1e-4):
            outcome = Outcome("same")
        else:
            outcome = Outcome("changed", fault="" if allowed else "other logits from a package whose digests agree")
    outside = [path for path in opened if "secret" in path or path.startswith(("/etc/passwd", "/dev/zero")) or "trap" in path]
    return Outcome(outcome.result, outcome.message, f"opened {outside[0]}") if outside else outcome


def load_in_process(load: Callable[[], Outcome]) -> tuple[Outcome, int]:
    """The outcome of `load` in a forked process, and its peak memory in bytes."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        os.write(write, json.dumps(load().__dict__).encode("utf-8", "replace")[:60_000])
        os._exit(0)
    os.close(write)
    answered = select.select([read], [], [], SECONDS)[0]
    if not answered:
        os.killpg(process, signal.SIGKILL)
    answer = os.read(read, 1 << 16) if answered else b""
    os.close(read)
    _, status, usage = os.wait4(process, 0)
    if not answer:
        return Outcome(
            "hang" if not answered or status == signal.SIGXCPU else "crash", fault="no answer"
        ), usage.ru_maxrss << 10
    outcome = Outcome(**json.loads(answer))
    if usage.ru_utime + usage.ru_stime > CPU_SECONDS:
        outcome = Outcome("slow", outcome.message, f"{usage.ru_utime + usage.ru_stime:.1f} s of CPU time")
    return outcome, usage.ru_maxrss << 10


def fuzz(packages: dict[str, Package], work: Path, *, count: int, seed: int) -> Iterator[tuple[str, str, Outcome]]:
    """For each of `count` mutations: the package, the mutation and the outcome. The same seed gives the same mutations."""
    usual = max(load_in_process(lambda p=p: watched(p, p.folder, allowed=False))[1] for p in packages.values())
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(list(packages))
        package, mutate, signed = packages[name], rng.choice(MUTATIONS), bool(rng.randrange(2))
        place = work / f"{number}"
        (place / "adapter").parent.mkdir(parents=True)
        (place / "secret.txt").write_text("secret")
        folder = place / "adapter"
        shutil.copytree(package.folder, folder)
        mutate(folder, rng)
        if signed:
            sign(folder)
        before = _state(place)
        allowed = signed or name == "plain PEFT" or mutate is json_field  # the manifest has no digest of its own
        outcome, memory = load_in_process(lambda: watched(package, folder, allowed=allowed))  # noqa: B023 - called at once
        if memory > usual + MEMORY:
            outcome = Outcome("memory", outcome.message, f"{memory / 2**30:.1f} GiB of memory")
        if _state(place) != before:
            outcome = Outcome("wrote", outcome.message, "it changed files")
        if outcome.fault:
            outcome = Outcome(
                outcome.result, f"mutation {number}{' signed' if signed else ''}: {outcome.message}", outcome.fault
            )
        shutil.rmtree(place)
        yield name, mutate.__name__, outcome


def _state(place: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in place.rglob("*"))


def main(argv: Sequence[str] | None = None) -> int:
    """0 if there is no fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    quiet_libraries()
    logging.getLogger("medgraft").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    os.environ.setdefault("MEDGRAFT_DEVICE", "cpu")
    start, results, faults = time.monotonic(), Counter(), []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        packages = make_packages(work)
        for done, (name, mutation, outcome) in enumerate(
            fuzz(packages, work / "mutated", count=options.count, seed=options.seed), 1
        ):
            results[mutation, outcome.result] += 1
            if outcome.fault:
                faults.append(f"{name}, {mutation}: {outcome.fault}: {outcome.message}")
                print(faults[-1], flush=True)
            if done % 500 == 0:
                print(f"{done} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    columns = sorted({result for _, result in results})
    print(f"{'':20}" + "".join(f"{column:>10}" for column in columns))
    for mutation in sorted({mutation for mutation, _ in results}):
        print(f"{mutation:20}" + "".join(f"{results[mutation, column]:>10}" for column in columns))
    print(f"{options.count} mutations, {len(faults)} faults, {time.monotonic() - start:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
