"""Abdominal ultrasound: echogenicity in a fan, attenuation and shadows along the beams, speckle."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from medgraft.data.phantoms.drawing import SIZE, Field, Grid, Mask, Rendered, inside, nothing, over, texture
from medgraft.data.phantoms.facts import Facts

_FIELD, _TOP, _HALF_ANGLE = 190.0, -88.0, 0.62  # mm, mm, radians
_BEAMS, _DEPTHS = 160, 200


def render(facts: Facts, body: np.random.Generator, rng: np.random.Generator) -> Rendered:
    """A curved-array image of the liver with gallbladder, or of a kidney beside the liver."""
    grid = Grid.of(_FIELD)
    echo, absorbs, finding = _kidney(facts, grid, body, rng) if _is_kidney(facts, body) else _liver(facts, grid, body, rng)
    radius = np.hypot(grid.x, grid.y - _TOP + 40)
    angle = np.arctan2(grid.x, grid.y - _TOP + 40)
    fan = inside(np.abs(angle) / _HALF_ANGLE, 0.02) * (radius > 48) * (radius < 205)
    speckle = np.hypot(*(gaussian_filter(rng.standard_normal((SIZE, SIZE)), (0.7, 1.3)) for _ in range(2)))
    speckle = speckle / speckle.mean()
    gain = np.exp(-_along_beams(grid, absorbs))
    depth_loss = np.exp(-np.clip(radius - 48, 0, None) / 420)
    signal = echo * gain * depth_loss * speckle**0.8 * fan
    shown = np.log1p(22 * signal * rng.uniform(0.85, 1.2)) / np.log(23)  # log compression of the receiver
    return Rendered(np.clip(shown * 0.86 * fan, 0, 1).astype(np.float32), finding & (fan > 0.5))


def _is_kidney(facts: Facts, body: np.random.Generator) -> bool:
    return facts.site == "kidney" or (facts.finding is None and body.random() < 0.4)


def _along_beams(grid: Grid, absorbs: Field) -> Field:
    """Absorption integrated from the probe to each pixel, along the fan's beams."""
    angles = np.linspace(-_HALF_ANGLE, _HALF_ANGLE, _BEAMS)
    depths = np.linspace(48, 205, _DEPTHS)
    x = np.sin(angles)[:, None] * depths
    y = np.cos(angles)[:, None] * depths + _TOP - 40
    pixels = (np.stack([y, x]) + _FIELD / 2) / grid.step - 0.5
    sampled = map_coordinates(absorbs, pixels, order=1, mode="constant")
    summed = np.cumsum(sampled, axis=1)
    beam = (np.arctan2(grid.x, grid.y - _TOP + 40) / _HALF_ANGLE + 1) / 2 * (_BEAMS - 1)
    depth = (np.hypot(grid.x, grid.y - _TOP + 40) - 48) / (205 - 48) * (_DEPTHS - 1)
    total: Field = map_coordinates(summed, [beam, depth], order=1, mode="nearest").astype(np.float32)
    return total


def _wall(grid: Grid, rng: np.random.Generator) -> Field:
    """Liver tissue below bright layers of the abdominal wall, with the diaphragm beneath."""
    echo = (0.16 * (1 + 0.12 * texture(rng, 5))).astype(np.float32)
    for depth, bright in ((-74, 0.5), (-67, 0.28), (-60, 0.42)):
        echo = over(echo, bright, np.exp(-(((grid.y - depth - 0.0018 * grid.x**2) / 1.8) ** 2)))
    diaphragm = np.abs(np.hypot(grid.x + 10, grid.y - 8) - 86) / 2.2
    return over(echo, 0.75, np.exp(-(diaphragm**2)) * (grid.y > 22))


def _liver(facts: Facts, grid: Grid, body: np.random.Generator, rng: np.random.Generator) -> tuple[Field, Field, Mask]:
    echo, absorbs = _wall(grid, rng), np.zeros((SIZE, SIZE), dtype=np.float32)
    for _ in range(6):
        x, y = body.uniform(-60, 60), body.uniform(-36, 50)
        vessel = grid.ellipse(x, y, body.uniform(6, 14), 3, body.uniform(-0.8, 0.8))
        echo = over(echo, 0.4, np.exp(-(((vessel - 1) / 0.3) ** 2)) * 0.6)
        echo = over(echo, 0.02, inside(vessel, 0.3))
    gx, gy = body.uniform(14, 30), body.uniform(4, 18)
    gallbladder = grid.ellipse(gx, gy, 27, 14, 0.45)
    echo = over(echo, 0.4, np.exp(-(((gallbladder - 1) / 0.08) ** 2)))
    echo = over(echo, 0.008, inside(gallbladder, 0.05))
    absorbs -= 0.012 * inside(gallbladder, 0.05)
    if facts.finding == "gallstone":
        return _stone(facts, grid, echo, absorbs, gx + rng.uniform(-8, 8), gy + 6, rng)
    if facts.finding is None:
        return echo, absorbs, nothing()
    return _lesion(facts, grid, echo, absorbs, -28 + rng.uniform(-14, 10), 0 + rng.uniform(-16, 22), rng)


def _kidney(facts: Facts, grid: Grid, body: np.random.Generator, rng: np.random.Generator) -> tuple[Field, Field, Mask]:
    echo, absorbs = _wall(grid, rng), np.zeros((SIZE, SIZE), dtype=np.float32)
    turn = body.uniform(-0.3, 0.1)
    kidney = grid.ellipse(4, 12, 56, 29, turn)
    echo = over(echo, 0.55, np.exp(-(((kidney - 1) / 0.05) ** 2)))
    echo = over(echo, 0.075 * (1 + 0.1 * texture(rng, 3)), inside(kidney, 0.05))
    echo = over(echo, 0.5 * (1 + 0.25 * texture(rng, 2)), inside(grid.ellipse(4, 12, 30, 10, turn), 0.25))
    for i in range(5):
        x = 4 + (i - 2) * 18 * np.cos(turn)
        echo = over(echo, 0.03, inside(grid.ellipse(x, 12 + (i - 2) * 18 * np.sin(turn) - 15, 5, 5), 0.4))
    if facts.finding is None:
        return echo, absorbs, nothing()
    if facts.finding == "stone":
        return _stone(facts, grid, echo, absorbs, 4 + rng.uniform(-16, 16), 14, rng)
    return _lesion(facts, grid, echo, absorbs, 4 + rng.choice((-38, 38)) + rng.uniform(-5, 5), 12 + rng.uniform(-8, 8), rng)


def _stone(
    facts: Facts, grid: Grid, echo: Field, absorbs: Field, x: float, y: float, rng: np.random.Generator
) -> tuple[Field, Field, Mask]:
    """Draw a stone: a bright surface with a dark shadow behind."""
    distance = grid.blob(x, y, (facts.size_mm or 10) / 2, rng, 0.1)
    echo = over(echo, 1.6, inside(distance, 0.3))
    return echo, (absorbs + 0.5 * inside(distance, 0.2)).astype(np.float32), distance < 1


def _lesion(
    facts: Facts, grid: Grid, echo: Field, absorbs: Field, x: float, y: float, rng: np.random.Generator
) -> tuple[Field, Field, Mask]:
    """Draw a lesion: a cyst is anechoic and enhances what lies behind it; a mass is a rough patch of other echogenicity."""
    cyst = facts.finding == "cyst"
    distance = grid.blob(x, y, (facts.size_mm or 28) / 2, rng, 0.03 if cyst else 0.22)
    if cyst:
        echo = over(echo, 0.4, np.exp(-(((distance - 1) / 0.07) ** 2)))
        echo = over(echo, 0.006, inside(distance, 0.06))
        return echo, (absorbs - 0.014 * inside(distance, 0.06)).astype(np.float32), distance < 1
    echo = over(echo, 0.42 * (1 + 0.3 * texture(rng, 2)), inside(distance, 0.15))
    return echo, absorbs, distance < 1
