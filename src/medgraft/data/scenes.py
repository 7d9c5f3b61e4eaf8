"""Drawn general scenes, nothing medical: the same pictures on every machine."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

_SIZE = 384  # pixels
_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "white", "black", "gray", "cyan")
_SHAPES = ("circle", "square", "triangle", "diamond", "star", "house")


def general_scenes(count: int) -> list[Image.Image]:
    """`count` RGB scenes of a landscape or a plain background with one to three coloured shapes."""
    return [_scene(np.random.default_rng([20_261, number])) for number in range(count)]


def _scene(rng: np.random.Generator) -> Image.Image:
    background, ground, *colours = (str(name) for name in rng.permutation(_COLOURS)[:5])
    image = Image.new("RGB", (_SIZE, _SIZE), background)
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.5:
        draw.rectangle((0, int(_SIZE * rng.uniform(0.5, 0.75)), _SIZE, _SIZE), fill=ground)
    for place, colour in zip(rng.permutation(3), colours[: rng.integers(1, 4)], strict=False):
        centre = np.array([(place + 0.5) / 3, rng.uniform(0.25, 0.75)]) * _SIZE
        outline = centre + rng.uniform(0.1, 0.16) * _SIZE * _outline(str(rng.choice(_SHAPES)))
        draw.polygon([(float(x), float(y)) for x, y in outline], fill=colour)
    return image


def _outline(shape: str) -> np.ndarray:
    """The corners [N, 2] of a shape around the origin, with radius 1."""
    if shape == "house":
        return np.array([(-0.8, 1.0), (-0.8, -0.2), (0.0, -1.0), (0.8, -0.2), (0.8, 1.0)])
    corners = {"circle": 48, "square": 4, "triangle": 3, "diamond": 4, "star": 10}[shape]
    turn = np.pi / 4 if shape == "square" else -np.pi / 2
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    radius = np.where(np.arange(corners) % 2, 0.4, 1.0) if shape == "star" else np.ones(corners)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
