"""Brain MR: tissues with T1, T2 and FLAIR contrast, coil shading and Rician noise."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from medgraft.data.phantoms.drawing import SIZE, Field, Grid, Mask, Rendered, inside, nothing, over, texture
from medgraft.data.phantoms.facts import Facts

# signal of fat, cerebrospinal fluid, grey matter, white matter, tumour, infarct, cyst, oedema
_SIGNAL = {
    "T1-weighted": (0.92, 0.14, 0.46, 0.66, 0.32, 0.36, 0.13, 0.42),
    "T2-weighted": (0.62, 0.95, 0.58, 0.40, 0.78, 0.80, 0.97, 0.84),
    "FLAIR": (0.62, 0.10, 0.56, 0.42, 0.86, 0.84, 0.09, 0.92),
}


def render(facts: Facts, body: np.random.Generator, rng: np.random.Generator) -> Rendered:
    """An axial slice (patient's left on the image's right, anterior up) or a midline sagittal one (anterior on the left)."""
    draw = _axial if facts.view == "axial" else _sagittal
    values, finding = draw(facts, body, rng)
    grid = Grid.of(2.0)
    shading = 1 + 0.12 * (rng.normal() * grid.x + rng.normal() * grid.y)
    values = gaussian_filter(values, 0.7) * shading
    sigma = rng.uniform(0.012, 0.035)
    noisy = np.hypot(values + sigma * rng.standard_normal(values.shape), sigma * rng.standard_normal(values.shape))
    return Rendered(np.clip(noisy * rng.uniform(0.9, 1.08), 0, 1).astype(np.float32), finding)


def _axial(facts: Facts, body: np.random.Generator, rng: np.random.Generator) -> tuple[Field, Mask]:
    fat, csf, grey, white, *_ = _SIGNAL[facts.contrast or "T1-weighted"]
    grid = Grid.of(235)
    wide, long = body.uniform(66, 73), body.uniform(84, 92)
    values = np.full((SIZE, SIZE), 0.015, dtype=np.float32)
    values = over(values, fat, inside(grid.ellipse(0, 0, wide + 15, long + 15), 0.02))
    values = over(values, 0.05, inside(grid.ellipse(0, 0, wide + 9, long + 9), 0.02))  # bone gives no signal
    brain = inside(grid.ellipse(0, 0, wide + 1, long + 1), 0.02)
    values = over(values, csf, brain)
    folds = 0.035 * np.sin(24 * np.arctan2(grid.y, grid.x) + 2.5 * texture(body, 9)) + 0.035 * texture(body, 4)
    values = over(values, grey, inside(grid.ellipse(0, 0, wide - 2, long - 2) + folds, 0.03))
    values = over(values, white, inside(grid.ellipse(0, 0, wide - 11, long - 11) + 2.4 * folds, 0.06))
    values = over(values, csf, np.exp(-((grid.x / 1.3) ** 2)) * (np.abs(grid.y) > 34) * brain)
    vent = body.uniform(0.8, 1.3)
    for sign in (-1, 1):
        values = over(values, grey, inside(grid.ellipse(sign * 24, 4, 11, 20, sign * 0.3), 0.2))
        values = over(values, csf, inside(grid.ellipse(sign * 8 * vent, -20, 5 * vent, 15, sign * 0.35), 0.15))
        values = over(values, csf, inside(grid.ellipse(sign * 14 * vent, 30, 5 * vent, 14, -sign * 0.45), 0.15))
    if facts.finding is None:
        return values, nothing()
    sign = -1 if facts.side == "right" else 1
    angle = {"frontal": -1.05, "parietal": -0.05, "occipital": 0.95}[facts.site or "parietal"] + rng.uniform(-0.14, 0.14)
    x, y = sign * 0.6 * wide * np.cos(angle), 0.62 * long * np.sin(angle)
    return _lesion(facts, grid, values, x, y, brain, rng)


def _sagittal(facts: Facts, body: np.random.Generator, rng: np.random.Generator) -> tuple[Field, Mask]:
    fat, csf, grey, white, *_ = _SIGNAL[facts.contrast or "T1-weighted"]
    grid = Grid.of(250)
    long = body.uniform(82, 90)
    values = np.full((SIZE, SIZE), 0.015, dtype=np.float32)
    values = over(values, fat * 0.9, inside(grid.ellipse(0, -12, long + 16, 88), 0.02))
    values = over(values, 0.55 * fat, inside(grid.ellipse(-52, 62, 42, 50, 0.3), 0.05))  # face
    values = over(values, 0.5 * fat, inside(grid.ellipse(18, 104, 40, 44), 0.05))  # neck
    for cx, cy in ((-88, 36), (-62, 70)):
        values = over(values, 0.02, inside(grid.ellipse(cx, cy, 12, 14), 0.15))  # airways
    values = over(values, 0.05, inside(grid.ellipse(0, -12, long + 9, 80), 0.02))
    brain = np.maximum(inside(grid.ellipse(0, -14, long, 70), 0.02), inside(grid.ellipse(34, 40, 40, 26, -0.3), 0.03))
    values = over(values, csf, brain)
    folds = 0.04 * np.sin(20 * np.arctan2(grid.y + 14, grid.x) + 2.5 * texture(body, 9)) + 0.04 * texture(body, 4)
    cerebrum = inside(grid.ellipse(0, -16, long - 3, 64) + folds, 0.03) * (grid.y < 30 + 0.1 * grid.x)
    values = over(values, grey, cerebrum)
    values = over(values, white, inside(grid.ellipse(0, -16, long - 18, 48) + 2 * folds, 0.08) * (grid.y < 18))
    arch = grid.ellipse(0, -2, 38, 26)
    values = over(values, csf, inside(grid.ellipse(0, -2, 32, 20), 0.1) * (grid.y < 4))
    values = over(values, white * 1.12, np.exp(-(((arch - 1) / 0.12) ** 2)) * (grid.y < 2))  # corpus callosum
    values = over(values, grey, inside(grid.ellipse(-2, 8, 15, 10), 0.2))  # thalamus
    values = over(values, white, inside(grid.ellipse(4, 44, 13, 26, 0.15), 0.1))  # brain stem
    values = over(values, white * 0.95, inside(grid.ellipse(16, 92, 8, 40, -0.05), 0.1))  # cord
    lines = 0.5 + 0.5 * np.sin(np.hypot(grid.x - 30, grid.y - 40) * 1.1)
    values = over(values, grey + (white - grey) * lines, inside(grid.ellipse(44, 44, 28, 21, -0.3), 0.06))
    if facts.finding is None:
        return values, nothing()
    centre = {"frontal": (-48, -28), "parietal": (22, -52), "occipital": (62, -14), "cerebellum": (44, 44)}
    x, y = centre[facts.site or "parietal"]
    return _lesion(facts, grid, values, x + rng.uniform(-6, 6), y + rng.uniform(-5, 5), brain, rng)


def _lesion(
    facts: Facts, grid: Grid, values: Field, x: float, y: float, brain: Field, rng: np.random.Generator
) -> tuple[Field, Mask]:
    *_, tumour, infarct, cyst, oedema = _SIGNAL[facts.contrast or "T1-weighted"]
    radius = (facts.size_mm or 28) / 2
    if facts.finding == "cyst":
        distance = grid.blob(x, y, radius, rng, 0.03)
        return over(values, cyst, inside(distance, 0.06) * brain), (distance < 1) & (brain > 0.5)
    if facts.finding == "infarct":
        distance = grid.blob(x * 1.12, y * 1.12, radius, rng, 0.35)
        area = inside(distance, 0.25) * brain
        return over(values, infarct, 0.85 * area), area > 0.5
    distance = grid.blob(x, y, radius, rng, 0.2)
    values = over(values, oedema, 0.8 * inside(distance / 1.5, 0.35) * brain)
    values = over(values, tumour + 0.09 * texture(rng, 2), inside(distance, 0.08) * brain)
    necrosis = inside(grid.blob(x, y, radius * 0.45, rng, 0.3), 0.3)
    return over(values, cyst, 0.8 * necrosis), (distance < 1) & (brain > 0.5)
