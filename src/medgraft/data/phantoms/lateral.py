"""Lateral chest radiographs beside frontal ones; a hiatal hernia is seen on them alone: the heart hides it from the front."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from medgraft.data.phantoms.drawing import Field, Grid, inside
from medgraft.data.phantoms.radiograph import BONE, LUNG, SOFT, expose

VERSION = 1  # part of the cache's name; increase it if any pixel changes


def has_hernia(phantom: str, seed: int) -> bool:
    """Whether the lateral view of the phantom with this id shows a hiatal hernia; half of them do."""
    return bool(_random(phantom, seed).random() < 0.5)


def write_laterals(folder: Path, phantoms: Iterable[str], seed: int) -> None:
    """Write the lateral views of the phantoms with these ids into `folder`; the same arguments give the same bytes."""
    for phantom in phantoms:
        image = Image.fromarray((_render(_random(phantom, seed)) * 255 + 0.5).astype(np.uint8))
        image.save(folder / f"{phantom}.jpg", quality=92)


def _random(phantom: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 3, zlib.crc32(phantom.encode())])


def _render(rng: np.random.Generator) -> Field:
    """A lateral chest radiograph, [SIZE, SIZE]; the patient looks to the image's left."""
    grid, hernia = Grid.of(370), rng.random() < 0.5  # first of all, as `has_hernia` draws it
    deep, dome = rng.uniform(0.92, 1.08), 86 + rng.uniform(-8, 8)
    path = SOFT * grid.chord(0, 60, 112 * deep, 300, 150)
    lungs = grid.chord(6 * deep, -14, 84 * deep, 136, 120, 0.06)
    height = dome - 30 * np.exp(-(((grid.x + 34 * deep) / 52) ** 2)) + 10
    path -= (SOFT - LUNG) * lungs * np.clip((height - grid.y) / 7 + 0.5, 0, 1)
    path += SOFT * 0.8 * grid.chord(-38 * deep, 36, 44 * deep, 50, 46, 0.5)  # heart
    path += SOFT * 0.5 * grid.chord(-8, -60, 34, 26, 30)  # aortic arch
    for level in range(-150, 170, 26):  # vertebral bodies
        path += BONE * 15 * inside(grid.ellipse(84 * deep + 0.05 * level, level, 15, 10), 0.2)
    path += BONE * 0.25 * grid.chord(-94 * deep, -20, 5, 96, 20, -0.2)  # sternum
    if hernia:
        x, y = 34 * deep + rng.uniform(-6, 6), 44 + rng.uniform(-8, 8)
        sac = inside(grid.ellipse(x, y, 30, 26), 0.1)
        path += 1.1 * sac - 0.7 * sac * np.clip((y - grid.y) / 3, 0, 1)  # fluid below air
    return expose(path, rng, 1.0)
