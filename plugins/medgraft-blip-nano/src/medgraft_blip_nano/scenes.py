"""General synthetic scenes with spatial captions: what blip-nano was pretrained on.

A scene has a background, one to three objects (shape, colour, texture, size, place) and a look (colour, grey,
blurred, noisy). Nothing medical is drawn or said here.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

SIZE = 128
GRID = 8
_CANVAS = 256

COLORS = {
    "red": (205, 45, 40), "green": (50, 150, 60), "blue": (45, 80, 200), "yellow": (235, 205, 50),
    "orange": (240, 140, 40), "purple": (130, 60, 170), "pink": (240, 150, 185), "brown": (125, 80, 45),
    "white": (245, 245, 245), "black": (15, 15, 15), "gray": (128, 128, 128), "cyan": (60, 195, 205),
}  # fmt: skip
GREYS = {"white": 240, "light gray": 185, "gray": 125, "dark gray": 70, "black": 12}
TONES = tuple(dict.fromkeys([*COLORS, *GREYS]))
TEXTURES = ("plain", "striped", "dotted", "checkered", "speckled", "faded", "outlined", "rough")
SHAPES = (
    "circle", "square", "triangle", "star", "ring", "cross", "crescent", "ellipse", "heart", "diamond", "hexagon",
    "arrow", "house", "tree", "boat", "fish", "flower", "cloud", "mushroom", "spiral", "line", "cup", "leaf", "shell",
)  # fmt: skip
SIZES = {"tiny": 0.13, "small": 0.2, "medium": 0.3, "large": 0.42, "huge": 0.58}
BACKGROUNDS = ("plain", "gradient", "noisy", "striped", "cloudy", "landscape", "vignette")
SALIENCY_METRICS = ("color", "color", "color", "gray", "gray", "blurry", "noisy", "dim", "bright")


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `column` and `row` are cells of a 3 x 3 grid, `size` a key of SIZES."""

    shape: str
    color: str
    texture: str
    size: str
    column: int
    row: int
    count: int = 1
    inner: str | None = None  # shape drawn inside this one


@dataclass(frozen=True)
class Scene:
    """One scene: everything that its image and its captions are made from."""

    things: tuple[Thing, ...]
    background: str
    background_color: str
    look: str


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene. Grey looks use grey tones only, so that their captions never name a colour that is not there."""
    look = str(rng.choice(SALIENCY_METRICS))
    tones = list(GREYS) if look == "gray" else list(COLORS)
    background_color = str(rng.choice(tones))
    things, taken = [], set()
    for _ in range(int(rng.choice((1, 2, 3), p=(0.5, 0.38, 0.12)))):
        column, row = int(rng.integers(3)), int(rng.integers(3))
        if (column, row) in taken:
            continue
        taken.add((column, row))
        size = str(rng.choice(list(SIZES)[: 5 if not things else 3]))
        if size in ("large", "huge") and rng.random() < 0.6:
            column, row = 1, 1
        count = int(rng.choice((2, 3, 4))) if size in ("tiny", "small") and rng.random() < 0.25 else 1
        inner = str(rng.choice(SHAPES[:12])) if size in ("large", "huge") and rng.random() < 0.35 else None
        color = str(rng.choice([tone for tone in tones if tone != background_color]))
        things.append(Thing(str(rng.choice(SHAPES)), color, str(rng.choice(TEXTURES)), size, column, row, count, inner))
    return Scene(tuple(things), str(rng.choice(BACKGROUNDS)), background_color, look)


def _rgb(name: str) -> tuple[int, int, int]:
    return COLORS[name] if name in COLORS and name not in GREYS else (GREYS[name],) * 3


def _polygon(points: list[tuple[float, float]], x: float, y: float, r: float, turn: float) -> list[tuple[float, float]]:
    c, s = math.cos(turn), math.sin(turn)
    return [(x + r * (px * c - py * s), y + r * (px * s + py * c)) for px, py in points]


def _regular(n: int, inner: float = 1.0) -> list[tuple[float, float]]:
    points = []
    for i in range(n if inner == 1.0 else 2 * n):
        radius = 1.0 if inner == 1.0 or i % 2 == 0 else inner
        angle = 2 * math.pi * i / (n if inner == 1.0 else 2 * n) - math.pi / 2
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


_OUTLINES = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": _regular(3),
    "diamond": [(0, -1), (0.65, 0), (0, 1), (-0.65, 0)],
    "hexagon": _regular(6),
    "star": _regular(5, 0.42),
    "arrow": [(-1, -0.18), (0.25, -0.18), (0.25, -0.55), (1, 0), (0.25, 0.55), (0.25, 0.18), (-1, 0.18)],
    "cross": [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3),
              (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    "house": [(-0.8, 0.9), (-0.8, -0.1), (0, -0.95), (0.8, -0.1), (0.8, 0.9), (0.2, 0.9), (0.2, 0.3), (-0.2, 0.3),
              (-0.2, 0.9)],
    "boat": [(-1, 0.3), (-0.1, 0.3), (-0.1, -0.9), (0.7, 0.15), (0, 0.15), (0, 0.3), (1, 0.3), (0.6, 0.85), (-0.6, 0.85)],
    "cup": [(-0.7, -0.8), (0.7, -0.8), (0.5, 0.85), (-0.5, 0.85)],
    "line": [(-1, -0.07), (1, -0.07), (1, 0.07), (-1, 0.07)],
}  # fmt: skip


def _mask(shape: str, x: float, y: float, r: float, rng: np.random.Generator) -> Image.Image:
    mask = Image.new("L", (_CANVAS, _CANVAS), 0)
    draw = ImageDraw.Draw(mask)

    def disc(cx: float, cy: float, rx: float, ry: float | None = None, fill: int = 255) -> None:
        ry = rx if ry is None else ry
        draw.ellipse((x + r * (cx - rx), y + r * (cy - ry), x + r * (cx + rx), y + r * (cy + ry)), fill=fill)

    if shape in _OUTLINES:
        turn = rng.uniform(0, 2 * math.pi) if shape in ("arrow", "line") else rng.uniform(-0.2, 0.2)
        draw.polygon(_polygon(_OUTLINES[shape], x, y, r, turn), fill=255)
    elif shape == "circle":
        disc(0, 0, 1)
    elif shape == "ellipse":
        disc(0, 0, 1, 0.6)
    elif shape == "ring":
        disc(0, 0, 1)
        disc(0, 0, 0.6, fill=0)
    elif shape == "crescent":
        disc(0, 0, 1)
        disc(0.45, -0.1, 0.85, fill=0)
    elif shape == "heart":
        disc(-0.45, -0.35, 0.5)
        disc(0.45, -0.35, 0.5)
        draw.polygon(_polygon([(-0.92, -0.15), (0.92, -0.15), (0, 1)], x, y, r, 0), fill=255)
    elif shape == "tree":
        draw.polygon(_polygon([(0, -1), (0.75, 0.4), (-0.75, 0.4)], x, y, r, 0), fill=255)
        draw.polygon(_polygon([(-0.15, 0.4), (0.15, 0.4), (0.15, 1), (-0.15, 1)], x, y, r, 0), fill=255)
    elif shape == "fish":
        disc(-0.15, 0, 0.7, 0.45)
        draw.polygon(_polygon([(0.4, 0), (1, -0.5), (1, 0.5)], x, y, r, 0), fill=255)
    elif shape == "flower":
        for i in range(6):
            disc(0.6 * math.cos(i * math.pi / 3), 0.6 * math.sin(i * math.pi / 3), 0.36)
        disc(0, 0, 0.2, fill=0)
    elif shape == "cloud":
        for cx, cy, radius in ((-0.5, 0.15, 0.42), (0, -0.15, 0.55), (0.5, 0.15, 0.42), (0, 0.25, 0.4)):
            disc(cx, cy, radius)
    elif shape == "mushroom":
        draw.pieslice((x - r, y - r, x + r, y + r), 180, 360, fill=255)
        draw.polygon(_polygon([(-0.25, 0), (0.25, 0), (0.3, 0.9), (-0.3, 0.9)], x, y, r, 0), fill=255)
    elif shape == "leaf":
        draw.chord((x - r, y - 1.5 * r, x + r, y + 0.5 * r), 20, 160, fill=255)
        draw.chord((x - r, y - 0.75 * r, x + r, y + 1.25 * r), 200, 340, fill=255)
    elif shape == "shell":
        for i in range(5):
            disc(0, 0.2 * i - 0.2, 0.9 - 0.18 * i, 0.7 - 0.15 * i, fill=255 if i % 2 == 0 else 90)
    elif shape == "spiral":
        points = [(x + r * t / 12 * math.cos(t), y + r * t / 12 * math.sin(t)) for t in np.linspace(0, 12, 70)]
        draw.line(points, fill=255, width=max(2, int(r / 7)))
    else:
        raise ValueError(f"no such shape: {shape}")
    return mask


def _noise(rng: np.random.Generator, cells: int, low: int = 0, high: int = 255) -> Image.Image:
    grid = rng.integers(low, high + 1, (cells, cells), dtype=np.uint8)
    return Image.fromarray(grid).resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC)


def _pattern(texture: str, rng: np.random.Generator) -> Image.Image:
    """How much of the object's colour (255) or of its shade (0) shows at each pixel."""
    if texture == "plain":
        return Image.new("L", (_CANVAS, _CANVAS), 255)
    if texture == "speckled":
        return _noise(rng, 110).point(lambda v: 255 if v > 100 else 40)
    if texture == "rough":
        return _noise(rng, 34, 30)
    yy, xx = np.mgrid[:_CANVAS, :_CANVAS].astype(np.float32)
    period = rng.uniform(12, 22)
    if texture == "striped":
        turn = rng.uniform(0, math.pi)
        value = (np.sin((xx * math.cos(turn) + yy * math.sin(turn)) * 2 * math.pi / period) > 0) * 205.0 + 50
    elif texture == "checkered":
        value = (((xx // period) + (yy // period)) % 2) * 205.0 + 50
    elif texture == "dotted":
        value = ((((xx % period) - period / 2) ** 2 + ((yy % period) - period / 2) ** 2) > (period / 3.5) ** 2) * 205.0 + 50
    else:  # faded, outlined: brightness falls off in one direction
        turn = rng.uniform(0, 2 * math.pi)
        value = 150 + 105 * np.sin((xx * math.cos(turn) + yy * math.sin(turn)) * math.pi / _CANVAS)
    return Image.fromarray(value.astype(np.uint8))


def _background(scene: Scene, rng: np.random.Generator) -> Image.Image:
    base = _rgb(scene.background_color)
    image = Image.new("RGB", (_CANVAS, _CANVAS), base)
    shade = Image.new("RGB", (_CANVAS, _CANVAS), tuple(int(v * 0.45 + 20) for v in base))
    kind = scene.background
    if kind == "gradient":
        return Image.composite(image, shade, _pattern("faded", rng))
    if kind == "noisy":
        return Image.composite(image, shade, _noise(rng, 128, 60))
    if kind == "striped":
        return Image.composite(image, shade, _pattern("striped", rng))
    if kind == "cloudy":
        return Image.composite(image, shade, _noise(rng, 9, 60))
    if kind == "landscape":
        ImageDraw.Draw(image).rectangle(
            (0, int(_CANVAS * rng.uniform(0.5, 0.75)), _CANVAS, _CANVAS), fill=shade.getpixel((0, 0))
        )
    elif kind == "vignette":
        mask = Image.new("L", (_CANVAS, _CANVAS), 0)
        edge = int(rng.uniform(4, 30))
        ImageDraw.Draw(mask).ellipse((edge, edge, _CANVAS - edge, _CANVAS - edge), fill=255)
        return Image.composite(image, Image.new("RGB", (_CANVAS, _CANVAS), (8, 8, 8)), mask.filter(ImageFilter.GaussianBlur(8)))
    return image


def _paint(image: Image.Image, mask: Image.Image, color: str, texture: str, rng: np.random.Generator) -> Image.Image:
    rgb = _rgb(color)
    solid = Image.new("RGB", (_CANVAS, _CANVAS), rgb)
    shade = Image.new("RGB", (_CANVAS, _CANVAS), tuple(int(v * 0.35 + 25) for v in rgb))
    filled = Image.composite(solid, shade, _pattern(texture, rng))
    if texture == "outlined":
        edge = mask.filter(ImageFilter.MinFilter(9))
        mask = ImageChops.subtract(mask, edge)
        filled = solid
    return Image.composite(filled, image, mask)


def render(scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """The scene as an RGB image of SIZE x SIZE pixels, and which thing is where.

    The second is uint8 [GRID, GRID, 3]: shape, colour and texture of the thing that covers most of each cell, as index
    into SHAPES, TONES and TEXTURES plus one; zeros where there is none.
    """
    image = _background(scene, rng)
    owner = Image.new("L", (_CANVAS, _CANVAS), 0)
    for number, thing in enumerate(scene.things, start=1):
        r = SIZES[thing.size] * _CANVAS / 2 * rng.uniform(0.88, 1.12)
        x = _CANVAS * (thing.column + 0.5) / 3 + rng.uniform(-12, 12)
        y = _CANVAS * (thing.row + 0.5) / 3 + rng.uniform(-12, 12)
        for i in range(thing.count):
            dx = (i - (thing.count - 1) / 2) * 2.1 * r
            cx = min(max(x + dx, 0.6 * r), _CANVAS - 0.6 * r)
            mask = _mask(thing.shape, cx, y + rng.uniform(-4, 4), r, rng)
            image = _paint(image, mask, thing.color, thing.texture, rng)
            owner.paste(number, mask=mask)
        if thing.inner:
            tone = "white" if sum(_rgb(thing.color)) < 380 else "black"
            image = _paint(image, _mask(thing.inner, x, y, 0.4 * r, rng), tone, "plain", rng)
    image = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    if scene.look == "gray":
        image = ImageOps.grayscale(image).convert("RGB")
    elif scene.look == "blurry":
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1.8, 3)))
    elif scene.look == "dim":
        image = image.point(lambda v: int(v * 0.45))
    elif scene.look == "bright":
        image = image.point(lambda v: int(90 + v * 0.65))
    noise = 22.0 if scene.look == "noisy" else float(rng.choice((0, 3, 7)))
    if noise:
        pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, noise, (SIZE, SIZE, 1))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image, _cells(scene, np.asarray(owner))


def _cells(scene: Scene, owner: np.ndarray) -> np.ndarray:
    side = _CANVAS // GRID
    blocks = owner.reshape(GRID, side, GRID, side).swapaxes(1, 2).reshape(GRID, GRID, -1)
    cells = np.zeros((GRID, GRID, 3), dtype=np.uint8)
    most = np.full((GRID, GRID), 0.12 * side * side)
    for number, thing in enumerate(scene.things, start=1):
        count = (blocks == number).sum(-1)
        index = (SHAPES.index(thing.shape), TONES.index(thing.color), TEXTURES.index(thing.texture))
        cells[count > most] = np.array(index) + 1
        most = np.maximum(most, count)
    return cells
