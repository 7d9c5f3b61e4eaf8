"""Chest radiographs: attenuation integrated along parallel rays through ellipsoids, bones and vessels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from medgraft.data.phantoms.drawing import SIZE, Field, Grid, Mask, Rendered, inside, nothing, texture
from medgraft.data.phantoms.facts import Facts

SOFT, LUNG, BONE = 0.019, 0.0055, 0.042  # per mm, at diagnostic energies
_ZONE = {"upper": -72.0, "middle": -8.0, "lower": 42.0}


def render(facts: Facts, body: np.random.Generator, rng: np.random.Generator) -> Rendered:
    """A frontal chest radiograph; the patient's left is on the image's right."""
    grid = Grid.of(370)
    wide = body.uniform(0.92, 1.08)
    ap = facts.view == "AP"
    heart_scale = body.uniform(0.92, 1.06) * (1.45 if facts.finding == "cardiomegaly" else 1.12 if ap else 1.0)
    dome = {"right": 78 + body.uniform(-8, 8), "left": 88 + body.uniform(-8, 8)}

    path = SOFT * _torso(grid, wide)
    lungs = {side: _lung(grid, side, wide, dome[side]) for side in ("right", "left")}
    for depth in lungs.values():
        path -= (SOFT - LUNG) * depth
    aerated = (lungs["left"] + lungs["right"]) / 165
    path += 0.6 * aerated * _vessels(grid, body)
    path += SOFT * 0.62 * grid.chord(12 * wide, 38, 47 * wide * heart_scale, 52 * heart_scale**0.5, 38 * heart_scale, 0.5)
    path += SOFT * 0.55 * grid.chord(0, -20, 26, 120, 26)  # mediastinum
    path += SOFT * 0.6 * grid.chord(20, -62, 15, 17, 20)  # aortic knob
    path += BONE * 0.32 * grid.chord(0, 0, 15, 230, 17)  # spine
    path -= 0.011 * grid.chord(body.uniform(-2, 2), -118, 7, 62, 8)  # trachea
    path += _bones(grid, body, wide, facts)

    finding = nothing()
    if facts.finding == "cardiomegaly":
        finding = grid.ellipse(12 * wide, 38, 47 * wide * heart_scale, 52 * heart_scale**0.5, 0.5) < 1
    elif facts.finding is not None:
        path, finding = _add(facts, grid, path, lungs, wide, dome, rng)
    return Rendered(expose(path, rng, 1.0 if not ap else 0.93), finding)


def _torso(grid: Grid, wide: float) -> Field:
    thorax = grid.chord(0, 60, 172 * wide, 300, 108)
    neck = grid.chord(0, -190, 58, 80, 55)
    shoulders = grid.chord(-120 * wide, -125, 90, 60, 60) + grid.chord(120 * wide, -125, 90, 60, 60)
    return np.maximum(np.maximum(thorax, neck), 0.75 * shoulders)


def _lung(grid: Grid, side: str, wide: float, dome: float) -> Field:
    """Depth of aerated lung in mm: an ellipsoid, cut off below by the dome of the diaphragm."""
    sign = -1 if side == "right" else 1
    depth = grid.chord(sign * 76 * wide, -12, 62 * wide, 138, 82, sign * -0.06)
    height = dome - 26 * np.exp(-(((grid.x - sign * 70 * wide) / 46) ** 2)) + 10
    return depth * np.clip((height - grid.y) / 7 + 0.5, 0, 1)


def _vessels(grid: Grid, body: np.random.Generator) -> Field:
    """Hilar vessels that branch and thin out towards the pleura."""
    drawn = np.zeros((SIZE, SIZE), dtype=np.float32)
    for sign in (-1, 1):
        for _ in range(9):
            angle = body.uniform(-1.25, 1.25)
            points = [np.array([sign * 24.0, -8.0 + body.uniform(-14, 18)])]
            for _ in range(4):
                points.append(points[-1] + 18 * np.array([sign * np.cos(angle), np.sin(angle)]))
                angle += body.uniform(-0.3, 0.3)
            for i in range(4):
                drawn = np.maximum(drawn, grid.line(np.stack(points[i : i + 2]), 5.0 - i) * (0.9 - 0.18 * i))
    return drawn


def _bones(grid: Grid, body: np.random.Generator, wide: float, facts: Facts) -> Field:
    total = np.zeros((SIZE, SIZE), dtype=np.float32)
    t = np.linspace(0, 1, 9)
    slope = body.uniform(16, 26)
    for i in range(9):
        level = -118 + 24 * i
        reach = (78 + 42 * np.sin(np.pi * min(i + 2.2, 8) / 11)) * wide
        for sign in (-1, 1):
            posterior = np.stack([sign * (14 + (reach - 14) * t), level + slope * t + 16 * t**3], axis=1)
            total += 0.34 * grid.line(posterior, 8)
            anterior = np.stack([sign * (reach - (reach - 44) * t), level + slope + 16 + 26 * t], axis=1)
            total += 0.15 * grid.line(anterior, 9)
    for side, sign in (("right", -1), ("left", 1)):
        x = sign * (14 + 108 * wide * t)
        y = -122 - 16 * np.sin(np.pi * t) * 0.8 - 10 * t
        broken = facts.finding == "clavicle fracture" and facts.side == side
        if not broken:
            total += 0.34 * grid.line(np.stack([x, y], axis=1), 10)
            continue
        total += 0.34 * grid.line(np.stack([x[:5], y[:5]], axis=1), 10)
        total += 0.34 * grid.line(np.stack([x[4:] + sign * 3, y[4:] + 17], axis=1), 10)
    return total


def _add(
    facts: Facts, grid: Grid, path: Field, lungs: dict[str, Field], wide: float, dome: dict[str, float],
    rng: np.random.Generator,
) -> tuple[Field, Mask]:  # fmt: skip
    side = facts.side or "right"
    sign = -1 if side == "right" else 1
    lung = lungs[side]
    inner = lung > 8
    if facts.finding == "clavicle fracture":
        return path, grid.ellipse(sign * (14 + 54 * wide), -128, 18, 18) < 1
    if facts.finding == "pleural effusion":
        top = dome[side] - rng.uniform(42, 95)
        meniscus = top - 34 * np.clip((sign * grid.x - 62 * wide) / 60, -0.4, 1) ** 2
        fluid = np.clip((grid.y - meniscus) / 6, 0, 1) * inner
        return path + (SOFT - LUNG) * lung * fluid * 0.95, (fluid > 0.5) & inner
    if facts.finding == "pneumothorax":
        shrunk = grid.ellipse(sign * 62 * wide, 6, 46 * wide * rng.uniform(0.8, 1.0), 112)
        free = inside(2 - shrunk, 0.05) * inner
        edge = np.exp(-(((shrunk - 1) / 0.022) ** 2)) * inner
        return path - 0.0045 * lung * free + 0.13 * edge - 0.25 * free * LUNG * lung, (free > 0.5) & inner
    y = _ZONE[facts.site or "middle"] + rng.uniform(-12, 12)
    x = sign * (78 * wide + rng.uniform(-18, 16))
    if facts.finding == "consolidation":
        cloud = np.exp(-((grid.blob(x, y, 44, rng, 0.3)) ** 2) * 1.4) * (1 + 0.35 * texture(rng, 4))
        return path + 0.0125 * np.clip(cloud, 0, 1.2) * lung, (cloud > 0.4) & inner
    radius = (facts.size_mm or 20) / 2
    distance = grid.blob(x, y, radius, rng, 0.08 if facts.finding == "nodule" else 0.22)
    lesion = np.sqrt(np.clip(1 - distance**2, 0, None)) * 2 * radius
    return path + (0.022 if facts.finding == "nodule" else 0.014) * lesion, distance < 1


def expose(path: Field, rng: np.random.Generator, contrast: float) -> Field:
    """Model a digital detector: blur, photon noise that grows with attenuation, and the display window."""
    path = gaussian_filter(path, 0.6)
    dose = rng.uniform(9e3, 3e4)
    counts = dose * np.exp(-path)
    path = -np.log(np.maximum(rng.poisson(counts), 1) / dose)
    low, high = np.percentile(path, (2, 99))
    shown = np.clip((path - low) / max(float(high - low), 1e-6), 0, 1) ** rng.uniform(0.85, 1.15)
    shown = (shown - 0.5) * contrast * rng.uniform(0.9, 1.05) + 0.5 + rng.uniform(-0.04, 0.04)
    image: Field = np.clip(shown, 0, 1).astype(np.float32)
    return image
