"""Images and captions that the checks compute on."""

from __future__ import annotations

import numpy as np
from PIL import Image

CAPTIONS = ("a nodule.", "no acute findings in the chest, heart size is normal.")


def images(count: int = 3) -> list[Image.Image]:
    """RGB images of noise, all of different sizes."""
    rng = np.random.default_rng(0)
    shapes = [(40 + 7 * i, 60 - 9 * i, 3) for i in range(count)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
