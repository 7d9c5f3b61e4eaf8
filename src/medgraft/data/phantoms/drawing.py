"""Shapes in millimetres on a square grid, smooth noise and display windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Field = NDArray[Any]  # float32, [SIZE, SIZE]
Mask = NDArray[np.bool_]

SIZE = 192


@dataclass(frozen=True)
class Rendered:
    """An image from 0 (black) to 1, [SIZE, SIZE], and the mask of its finding (all False if there is none)."""

    pixels: Field
    finding: Mask


@dataclass(frozen=True)
class Grid:
    """Pixel centres in mm: `x` grows to the right, `y` downwards, and (0, 0) is the middle."""

    x: Field
    y: Field
    step: float

    @classmethod
    def of(cls, field_mm: float) -> Grid:
        """A grid that covers `field_mm` x `field_mm`."""
        step = field_mm / SIZE
        axis = ((np.arange(SIZE) + 0.5) * step - field_mm / 2).astype(np.float32)
        x, y = np.meshgrid(axis, axis)
        return cls(x, y, step)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> Field:
        """Distance from the centre in units of the ellipse's radius: below 1 inside."""
        c, s = math.cos(turn), math.sin(turn)  # Python floats: numpy's would make the result float64
        dx, dy = self.x - float(cx), self.y - float(cy)
        along = dx * (c / float(rx)) + dy * (s / float(rx))
        across = dy * (c / float(ry)) - dx * (s / float(ry))
        distance: Field = np.sqrt(along * along + across * across)
        return distance

    def chord(self, cx: float, cy: float, rx: float, ry: float, depth: float, turn: float = 0.0) -> Field:
        """Length in mm of the viewing ray inside an ellipsoid of half-thickness `depth`."""
        length: Field = 2 * float(depth) * np.sqrt(np.maximum(1 - self.ellipse(cx, cy, rx, ry, turn) ** 2, 0))
        return length

    def blob(self, cx: float, cy: float, radius: float, rng: np.random.Generator, rough: float = 0.18) -> Field:
        """Like `ellipse`, but with a bumpy outline."""
        dx, dy = self.x - float(cx), self.y - float(cy)
        angle = np.arctan2(dy, dx)
        edge = np.ones_like(angle)
        for k in range(2, 7):
            edge += float(rough / k * rng.normal()) * np.cos(k * angle + rng.uniform(0, 6.28))
        return (np.hypot(dx, dy) / (float(radius) * np.clip(edge, 0.4, 2))).astype(np.float32)

    def line(self, points: NDArray[np.float64], width: float) -> Field:
        """1 on a polyline through `points` [N, 2] in mm, falling to 0 over `width` mm."""
        nearest = np.full(self.x.shape, 1e9, dtype=np.float32)
        origin, reach = float(self.x[0, 0]), 2 * width
        for start, end in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
            near = [  # only pixels near the segment can change
                slice(
                    max(int((min(a, b) - reach - origin) / self.step), 0),
                    max(int((max(a, b) + reach - origin) / self.step) + 2, 0),
                )
                for a, b in zip(start, end, strict=True)
            ]
            box = (near[1], near[0])
            (ax, ay), dx, dy = start, end[0] - start[0], end[1] - start[1]
            x, y = self.x[box] - ax, self.y[box] - ay
            t = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
            nearest[box] = np.minimum(nearest[box], (x - t * dx) ** 2 + (y - t * dy) ** 2)
        drawn: Field = np.exp(-nearest / (2 * (width / 2) ** 2))
        return drawn


def inside(distance: Field, edge: float = 0.06) -> Field:
    """1 where `distance` is below 1, falling smoothly to 0 over `edge`."""
    cover: Field = np.clip((1 - distance) * (1 / edge) + 0.5, 0, 1)
    return cover


def over(below: Field, value: float | Field, cover: Field) -> Field:
    """`value` painted over `below` where `cover` is 1."""
    painted: Field = below + (value - below) * cover
    return painted


def texture(rng: np.random.Generator, pixels: float) -> Field:
    """Smooth noise of unit variance with structures about `pixels` in size."""
    noise = gaussian_filter(rng.standard_normal((SIZE, SIZE)).astype(np.float32), pixels)
    unit: Field = (noise / max(float(noise.std()), 1e-6)).astype(np.float32)
    return unit


def window(values: Field, level: float, width: float) -> Field:
    """Values mapped from black at level - width / 2 to white at level + width / 2."""
    return np.clip((values - level) / width + 0.5, 0, 1).astype(np.float32)


def nothing() -> Mask:
    """The finding mask of an image without a finding."""
    return np.zeros((SIZE, SIZE), dtype=bool)


def draw_arrow(pixels: Field, finding: Mask, rng: np.random.Generator) -> Field:
    """Draw a white arrow that points at the finding from outside it."""
    rows, columns = np.nonzero(finding)
    cy, cx = float(rows.mean()), float(columns.mean())
    reach = max(np.ptp(rows), np.ptp(columns)) / 2
    towards = np.arctan2(SIZE / 2 - cy, SIZE / 2 - cx) + rng.uniform(-0.9, 0.9)
    direction = np.array([np.cos(towards), np.sin(towards)])
    tip = np.array([cx, cy]) + direction * (reach + 3)
    x, y = np.meshgrid(np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32))
    grid = Grid(x, y, step=1.0)
    side = np.array([-direction[1], direction[0]])
    shaft = grid.line(np.stack([tip, tip + direction * 22]), 2.6)
    head = grid.line(np.stack([tip + direction * 8 + side * 5.5, tip, tip + direction * 8 - side * 5.5]), 2.8)
    return over(pixels, 1.0, np.clip(np.maximum(shaft, head) * 1.6, 0, 1))
