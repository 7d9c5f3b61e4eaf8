"""Writes phantoms: ROCO v1 layout, with `facts.jsonl` beside the captions and `patients.csv` beside the splits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medgraft.data.phantoms import ct, mr, radiograph, ultrasound
from medgraft.data.phantoms.captions import write_caption
from medgraft.data.phantoms.drawing import Mask, Rendered, draw_arrow
from medgraft.data.phantoms.facts import Facts, draw_facts
from medgraft.errors import DataError
from medgraft.progress import progress_bar
from medgraft.types import SPLITS, Split

VERSION = 1  # part of the cache's name; increase it if any pixel or word changes
_SHARES = {"train": 0.8, "validation": 0.08, "test": 0.12}
_RENDERERS = {
    "chest-xray": radiograph.render, "chest-ct": ct.render, "abdomen-ct": ct.render, "head-ct": ct.render,
    "brain-mr": mr.render, "abdomen-us": ultrasound.render,
}  # fmt: skip
_CHUNK = 50


@dataclass(frozen=True)
class Phantom:
    """One image to make: its number in the set, its patient, and the split of all of that patient's images."""

    number: int
    patient: int
    split: Split

    @property
    def id(self) -> str:
        """The id: `PHANTOM_00000` and so on."""
        return f"PHANTOM_{self.number:05d}"


def plan(count: int, seed: int) -> tuple[Phantom, ...]:
    """`count` images of patients with one to three each; all images of a patient are in one split."""
    rng = np.random.default_rng([seed, 0])
    phantoms: list[Phantom] = []
    patient = 0
    for split in SPLITS:
        wanted = round(count * _SHARES[split]) if split != "test" else count - len(phantoms)
        made = 0
        while made < wanted:
            images = min(int(rng.integers(1, 4)), wanted - made)
            phantoms += [Phantom(len(phantoms) + i, patient, split) for i in range(images)]
            made, patient = made + images, patient + 1
    return tuple(phantoms)


def make(phantom: Phantom, seed: int) -> tuple[Rendered, Facts, str]:
    """Image, facts and caption of one phantom; nearly half of the test split has combinations not in training."""
    rng = np.random.default_rng([seed, 1, phantom.number])
    facts = draw_facts(rng, unseen=phantom.split == "test" and rng.random() < 0.45)
    body = np.random.default_rng([seed, 2, phantom.patient])
    rendered = _RENDERERS[facts.study](facts, body, rng)
    if facts.arrow and rendered.finding.any():
        rendered = Rendered(draw_arrow(rendered.pixels, rendered.finding, rng), rendered.finding)
    return rendered, facts, write_caption(facts, rng)


def write_phantoms(out: Path, *, count: int, seed: int = 0) -> dict[str, int]:
    """Write `count` phantoms into `out`, which must be new or empty; the number of images in each split.

    The same arguments give the same bytes.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty. Name a new folder; phantoms never overwrite files.")
    planned = plan(count, seed)
    for split in SPLITS:
        (out / split / "radiology" / "images").mkdir(parents=True, exist_ok=True)
    lines: dict[Split, list[tuple[Phantom, str, dict[str, Any]]]] = {split: [] for split in SPLITS}
    for phantom, caption, facts in progress_bar(_made(planned, seed, out), total=count, desc="phantoms", unit="image"):
        lines[phantom.split].append((phantom, caption, facts))
    for split, entries in lines.items():
        folder = out / split / "radiology"
        _write(folder / "captions.txt", (f"{p.id}\t {caption}" for p, caption, _ in entries))
        _write(folder / "facts.jsonl", (json.dumps(facts) for *_, facts in entries))
    _write(out / "patients.csv", ["id,patient", *(f"{p.id},P{p.patient:05d}" for p in planned)])
    return {split: len(entries) for split, entries in lines.items()}


def read_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """The facts of each phantom in `folder`, by id, from `facts.jsonl`."""
    lines = (line for path in folder.glob("*/radiology/facts.jsonl") for line in path.read_text(encoding="utf-8").splitlines())
    return {entry["id"]: entry for entry in map(json.loads, lines)}


def _made(planned: tuple[Phantom, ...], seed: int, out: Path) -> Iterator[tuple[Phantom, str, dict[str, Any]]]:
    chunks = [planned[i : i + _CHUNK] for i in range(0, len(planned), _CHUNK)]
    if len(chunks) == 1:
        yield from _make_chunk(chunks[0], seed, out)
        return
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done in pool.map(_make_chunk, chunks, [seed] * len(chunks), [out] * len(chunks)):
            yield from done


def _make_chunk(chunk: tuple[Phantom, ...], seed: int, out: Path) -> list[tuple[Phantom, str, dict[str, Any]]]:
    results = []
    for phantom in chunk:
        rendered, facts, caption = make(phantom, seed)
        image = Image.fromarray((rendered.pixels * 255 + 0.5).astype(np.uint8))
        image.save(out / phantom.split / "radiology" / "images" / f"{phantom.id}.jpg", quality=92)
        entry = {"id": phantom.id, "patient": f"P{phantom.patient:05d}", **asdict(facts), "box": box(rendered.finding)}
        results.append((phantom, caption, entry))
    return results


def box(finding: Mask) -> list[int] | None:
    """[left, top, right, bottom] in pixels, right and bottom exclusive; None if nothing is marked."""
    rows, columns = np.nonzero(finding)
    if not len(rows):
        return None
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def _write(path: Path, lines: Any) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
