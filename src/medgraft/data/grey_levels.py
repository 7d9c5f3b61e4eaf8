"""Maps the values of images with more than 8 bits, such as Hounsfield units, to grey levels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from medgraft.data.decoded import ImageError
from medgraft.errors import ConfigError, suggestion

Values = npt.NDArray[Any]
Levels = npt.NDArray[np.uint8]
Limits = tuple[float, float]  # the values that become black and white

PERCENTILES = (0.5, 99.5)
CT_WINDOWS: dict[str, tuple[float, float]] = {  # centre and width in Hounsfield units
    "soft-tissue": (40, 400),
    "mediastinum": (50, 350),
    "lung": (-600, 1500),
    "bone": (400, 1800),
    "brain": (40, 80),
}
WINDOWS = ("auto", "file", "full", "percentile", *CT_WINDOWS)


def check_window(window: str) -> None:
    """ConfigError unless `window` is one of WINDOWS or CENTER,WIDTH."""
    if window not in WINDOWS and _center_and_width(window) is None:
        raise ConfigError(
            f"There is no window {window!r}.{suggestion(window, WINDOWS)} Known: {', '.join(WINDOWS)}, or CENTER,WIDTH such as "
            "40,400 with a width above 0."
        )


def window_limits(values: Values, window: str) -> Limits:
    """The values that `window` shows as black and white; `auto` is by percentiles. NaN and infinities are ignored.

    Where the percentiles are equal, as in a mask, the minimum and maximum are taken.
    """
    center_and_width = CT_WINDOWS.get(window) or _center_and_width(window)
    if center_and_width is not None:
        center, width = center_and_width
        return center - width / 2, center + width / 2
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ImageError("it has no contrast: no value is a number")
    low, high = np.percentile(finite, PERCENTILES) if window != "full" else (0.0, 0.0)
    return (float(low), float(high)) if low < high else (float(finite.min()), float(finite.max()))


def grey_levels(values: Values, limits: Limits) -> Levels:
    """`values` between the limits as levels from 0 to 255; NaN is black."""
    low, high = limits
    exact: Values = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.multiply(exact - np.asarray(low, exact.dtype), 255 / max(high - low, 1e-30))
    levels: Levels = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).astype(np.uint8)
    return levels


def has_contrast(levels: Levels) -> bool:
    """Whether there is more than one level."""
    return bool(levels.min() < levels.max())


def windowed(values: Values, window: str) -> Levels:
    """`values` as `window` shows them. ImageError if that is a single level, or for `file`, which is the caller's."""
    if window == "file":
        raise ImageError("it has no window of its own")
    levels = grey_levels(values, window_limits(values, window))
    if not has_contrast(levels):
        raise ImageError("it has no contrast" + ("" if window in WINDOWS[:4] else f" in window {window!r}"))
    return levels


def _center_and_width(window: str) -> tuple[float, float] | None:
    try:
        center, width = (float(number) for number in window.split(","))
    except ValueError:
        return None
    return (center, width) if math.isfinite(center) and math.isfinite(width) and width > 0 else None
