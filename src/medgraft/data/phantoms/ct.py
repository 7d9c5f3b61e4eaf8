"""Axial CT of chest, abdomen and head: Hounsfield units, reconstruction noise and windowing."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from medgraft.data.phantoms.drawing import SIZE, Field, Grid, Mask, Rendered, inside, nothing, over, texture, window
from medgraft.data.phantoms.facts import Facts

_AIR, _LUNG, _FAT, _WATER, _SOFT, _BONE = -1000.0, -840.0, -95.0, 8.0, 45.0, 620.0


def render(facts: Facts, body: np.random.Generator, rng: np.random.Generator) -> Rendered:
    """One axial slice seen from below: the patient's left is on the image's right, anterior is up."""
    if facts.study == "chest-ct":
        values, finding = _chest(facts, body, rng)
        level, width = (-550, 1500) if facts.contrast == "lung window" else (40, 420)
    elif facts.study == "abdomen-ct":
        values, finding = _abdomen(facts, body, rng)
        level, width = 45, 380
    else:
        values, finding = _head(facts, body, rng)
        level, width = 38, 90
    values = gaussian_filter(values, 0.7) + rng.uniform(0.006, 0.02) * width * texture(rng, 0.8)
    return Rendered(window(values, level + rng.uniform(-0.03, 0.03) * width, width), finding)


def _trunk(grid: Grid, wide: float, deep: float, fat: float) -> Field:
    """Skin, subcutaneous fat, muscle wall, spine and table."""
    values = np.full((SIZE, SIZE), _AIR, dtype=np.float32)
    values = over(values, _FAT, inside(grid.ellipse(0, 0, wide + fat, deep + fat), 0.02))
    values = over(values, _SOFT, inside(grid.ellipse(0, 0, wide, deep), 0.02))
    values = over(values, _BONE * 0.6, inside(grid.ellipse(0, deep * 0.62, 20, 17), 0.1))
    values = over(values, _WATER + 15, inside(grid.ellipse(0, deep * 0.62 + 24, 9, 7), 0.15))
    values = over(values, _BONE, inside(grid.ellipse(0, deep * 0.62 + 41, 6, 14), 0.2))
    return over(values, -300.0, np.exp(-(((grid.y - deep - fat - 9) / 2) ** 2)) * (np.abs(grid.x) < 150))


def _ribs(grid: Grid, values: Field, wide: float, deep: float, body: np.random.Generator) -> Field:
    for angle in np.arange(0.25, 6.2, 0.52) + body.uniform(-0.1, 0.1):
        x, y = 0.955 * wide * np.cos(angle), 0.95 * deep * np.sin(angle)
        values = over(
            values, _BONE, inside(grid.ellipse(x, y, 14, 5, np.arctan2(deep * np.cos(angle), -wide * np.sin(angle))), 0.2)
        )
    return values


def _chest(facts: Facts, body: np.random.Generator, rng: np.random.Generator) -> tuple[Field, Mask]:
    grid = Grid.of(360)
    wide, deep = body.uniform(142, 158), body.uniform(98, 112)
    values = _ribs(grid, _trunk(grid, wide, deep, body.uniform(8, 26)), wide, deep, body)
    lungs: dict[str, Field] = {}
    for side, sign in (("right", -1), ("left", 1)):
        shape = inside(grid.ellipse(sign * 78, 2, 60, deep * 0.84, sign * 0.08), 0.04)
        lungs[side] = (
            shape
            * (1 - inside(grid.ellipse(22, -20, 56, 50, 0.5), 0.08))
            * (1 - inside(grid.ellipse(0, deep * 0.62, 30, 28), 0.1))
        )
        values = over(values, _LUNG + 25 * texture(rng, 2.5), lungs[side])
    enhanced = 130 if facts.contrast == "mediastinal window" else 60
    values = over(values, enhanced, inside(grid.ellipse(22, -20, 50, 42, 0.5), 0.05))  # heart
    values = over(values, _FAT, inside(grid.ellipse(0, -60, 22, 14), 0.3))
    values = over(values, enhanced + 30, inside(grid.ellipse(26, deep * 0.5, 13, 13), 0.1))  # descending aorta
    values = over(values, _AIR, inside(grid.ellipse(-6, 18, 7, 6), 0.2))  # bronchus
    for sign in (-1, 1):
        for _ in range(26):
            r, angle = body.uniform(12, 64), body.uniform(-1.3, 1.3)
            x, y = sign * (30 + r * np.cos(angle)), 4 + r * 1.1 * np.sin(angle)
            vessel = inside(grid.ellipse(x, y, 4.5 - r / 26, 3.6 - r / 30, body.uniform(0, 3)), 0.4)
            values = over(values, 35.0, vessel * np.maximum(lungs["left"], lungs["right"]))
    if facts.finding is None:
        return values, nothing()
    side = facts.side or "left"
    sign = 1 if side == "left" else -1
    lung = lungs[side]
    if facts.finding == "pleural effusion":
        fluid = np.clip((grid.y - rng.uniform(26, 52) + 0.004 * (grid.x - sign * 80) ** 2) / 3, 0, 1) * lung
        return over(values, _WATER, fluid), fluid > 0.5
    if facts.finding == "pneumothorax":
        free = np.clip((-grid.y - rng.uniform(14, 38) + 0.003 * (grid.x - sign * 80) ** 2) / 2, 0, 1) * lung
        edge = np.exp(-(((free - 0.5) / 0.3) ** 2)) * lung
        return over(over(values, _AIR, free), -200, 0.6 * edge), free > 0.5
    x, y = sign * (84 + rng.uniform(-16, 18)), (-42 if facts.site == "anterior" else 40) + rng.uniform(-10, 10)
    if facts.finding == "consolidation":
        cloud = np.clip(np.exp(-(grid.blob(x, y, 40, rng, 0.3) ** 2)) * (1.5 + 0.5 * texture(rng, 3)), 0, 1) * lung
        return over(values, 10.0, cloud), cloud > 0.45
    distance = grid.blob(x, y, (facts.size_mm or 20) / 2, rng, 0.1 if facts.finding == "nodule" else 0.25)
    return over(values, 55.0, inside(distance, 0.15)), distance < 1


def _abdomen(facts: Facts, body: np.random.Generator, rng: np.random.Generator) -> tuple[Field, Mask]:
    grid = Grid.of(360)
    wide, deep = body.uniform(138, 156), body.uniform(96, 112)
    enhanced = facts.contrast == "portal venous phase"
    values = _trunk(grid, wide, deep, body.uniform(12, 34))
    values = over(values, _FAT, inside(grid.ellipse(0, -8, wide - 16, deep - 18), 0.03))  # peritoneal fat
    values = _ribs(grid, values, wide, deep, body)
    ascites = facts.finding == "ascites"
    fluid = inside(grid.ellipse(0, -8, wide - 16, deep - 18), 0.03) * (
        1 - inside(grid.ellipse(6, -2, wide - 44, deep - 44), 0.05)
    )
    if ascites:
        values = over(values, _WATER, fluid)
    liver = inside(grid.ellipse(-64, -18, 68, 62, -0.25), 0.03) * (1 - inside(grid.ellipse(6, 42, 52, 46), 0.1))
    liver_value = 108.0 if enhanced else 58.0
    values = over(values, liver_value + 4 * texture(rng, 2), liver)
    for _ in range(7):
        x, y = -64 + body.uniform(-42, 40), -18 + body.uniform(-38, 26)
        values = over(values, 165.0 if enhanced else 42.0, inside(grid.ellipse(x, y, 5, 3, body.uniform(0, 3)), 0.4) * liver)
    values = over(values, 118.0 if enhanced else 48.0, inside(grid.ellipse(104, 8, 22, 42, 0.3), 0.05))  # spleen
    values = over(values, 15.0, inside(grid.ellipse(56, -46, 36, 26, 0.3), 0.05))  # stomach, with air on top
    values = over(values, _AIR, inside(grid.ellipse(56, -60, 26, 9, 0.1), 0.1))
    for _ in range(4):
        values = over(values, 35.0, inside(grid.ellipse(body.uniform(-10, 70), body.uniform(-20, 14), 14, 10), 0.1))
    values = over(values, 165.0 if enhanced else 45.0, inside(grid.ellipse(12, 34, 11, 11), 0.08))  # aorta
    values = over(values, 140.0 if enhanced else 42.0, inside(grid.ellipse(-14, 34, 13, 9), 0.1))  # vena cava
    kidneys = {}
    for side, sign in (("right", -1), ("left", 1)):
        kidneys[side] = (sign * 64, 46 + (4 if side == "right" else -2))
        x, y = kidneys[side]
        values = over(values, 175.0 if enhanced else 34.0, inside(grid.ellipse(x, y, 25, 32, sign * 0.5), 0.06))
        values = over(values, _FAT + 40, inside(grid.ellipse(x - sign * 9, y, 10, 13), 0.3))
    if facts.finding is None:
        return values, nothing()
    if ascites:
        return values, fluid > 0.5
    if facts.site == "kidney":
        sign = -1 if facts.side == "right" else 1
        x, y = kidneys[facts.side or "right"]
        if facts.finding == "stone":
            distance = grid.blob(x - sign * 6, y + rng.uniform(-8, 8), (facts.size_mm or 10) / 2, rng, 0.1)
            return over(values, 900.0, inside(distance, 0.3)), distance < 1
        x, y = x + sign * 14, y + rng.uniform(-12, 12)
    else:
        x, y = -64 + rng.uniform(-26, 22), -22 + rng.uniform(-22, 16)
    distance = grid.blob(x, y, (facts.size_mm or 30) / 2, rng, 0.03 if facts.finding == "cyst" else 0.22)
    if facts.finding == "cyst":
        return over(values, _WATER - 4, inside(distance, 0.06)), distance < 1
    inner = 62.0 + 22 * texture(rng, 2.5) if enhanced else 24.0 + 8 * texture(rng, 2.5)
    values = over(values, 150.0 if enhanced else 44.0, inside(distance, 0.15))
    return over(values, inner, inside(distance / 0.8, 0.25)), distance < 1


def _head(facts: Facts, body: np.random.Generator, rng: np.random.Generator) -> tuple[Field, Mask]:
    grid = Grid.of(235)
    wide, long = body.uniform(66, 73), body.uniform(84, 92)
    values = np.full((SIZE, SIZE), _AIR, dtype=np.float32)
    values = over(values, 30.0, inside(grid.ellipse(0, 0, wide + 12, long + 12), 0.02))
    values = over(values, 1100.0, inside(grid.ellipse(0, 0, wide + 7, long + 7), 0.02))
    brain = inside(grid.ellipse(0, 0, wide, long), 0.02)
    values = over(values, _WATER, brain)
    folds = 0.03 * np.sin(22 * np.arctan2(grid.y, grid.x) + 2.5 * texture(body, 9)) + 0.03 * texture(body, 4)
    values = over(values, 38.0, inside(grid.ellipse(0, 0, wide - 2, long - 2) + folds, 0.03))
    values = over(values, 29.0, inside(grid.ellipse(0, 0, wide - 12, long - 12) + 2.2 * folds, 0.1))
    values = over(values, _WATER, np.exp(-((grid.x / 1.3) ** 2)) * (np.abs(grid.y) > 36) * brain)  # fissure
    vent = body.uniform(0.8, 1.25)
    for sign in (-1, 1):
        values = over(values, 38.0, inside(grid.ellipse(sign * 22, 4, 11, 20, sign * 0.3), 0.2))  # basal ganglia
        values = over(values, _WATER, inside(grid.ellipse(sign * 8 * vent, -20, 5 * vent, 15, sign * 0.35), 0.15))
        values = over(values, _WATER, inside(grid.ellipse(sign * 14 * vent, 30, 5 * vent, 14, -sign * 0.45), 0.15))
    if facts.finding is None:
        return values, nothing()
    sign = -1 if facts.side == "right" else 1
    if facts.finding == "subdural haematoma":
        crescent = (
            brain * (1 - inside(grid.ellipse(-sign * rng.uniform(9, 15), 0, wide, long * 1.08), 0.03)) * (sign * grid.x > 0)
        )
        return over(values, 68.0 + 3 * texture(rng, 2), crescent), crescent > 0.5
    angle = {"frontal": -1.05, "parietal": -0.05, "occipital": 0.95}[facts.site or "parietal"] + rng.uniform(-0.14, 0.14)
    ux, uy = sign * np.cos(angle), np.sin(angle)
    if facts.finding == "skull fracture":
        x, y = (wide + 4) * ux, (long + 4) * uy
        gap = np.exp(-(grid.ellipse(x, y, 4, 4) ** 2) * 1.4)
        swelling = inside(grid.ellipse(x * 1.13, y * 1.13, 16, 12), 0.3) * (grid.ellipse(0, 0, wide + 7, long + 7) > 1)
        return over(over(values, 55.0, swelling), 20.0, np.clip(gap * 1.5, 0, 1)), grid.ellipse(x, y, 13, 13) < 1
    x, y = 0.58 * wide * ux, 0.6 * long * uy
    radius = (facts.size_mm or 30) / 2
    if facts.finding == "infarct":
        x, y = 0.7 * wide * ux, 0.72 * long * uy
        distance = grid.blob(x, y, radius * 1.05, rng, 0.2)
        area = inside(distance, 0.3) * brain
        return over(values, 17.0, 0.9 * area), area > 0.5
    distance = grid.blob(x, y, radius, rng, 0.2)
    values = over(values, 18.0, inside(distance / 1.35, 0.3) * brain)
    return over(values, 70.0 + 3 * texture(rng, 2), inside(distance, 0.1) * brain), (distance < 1) & (brain > 0.5)
