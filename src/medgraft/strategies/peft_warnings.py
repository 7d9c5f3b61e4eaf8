"""What PEFT warns of: shown in medgraft's log, but for what is expected here."""

from __future__ import annotations

import logging
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_EXPECTED = (
    "base_model_name_or_path. was renamed",
    "fan_in_fan_out",
    "Failed to load the CUDA extension",
    "Unsupported layer type.*Norm",
    "Setting boft_n",
    "tensor.s. have invalid shape",  # AdaLoRA may prune a layer to rank 0, and biases have one axis; shapes are compared
)


@contextmanager
def logged_warnings(*expected: str) -> Iterator[None]:
    """Log each warning inside the block once, at most 500 characters of it.

    Deprecations, _EXPECTED and those that match `expected` are left out.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        for message in (*_EXPECTED, *expected):
            warnings.filterwarnings("ignore", message=f".*{message}")
        yield
    for text in dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught):
        logging.getLogger(__name__).warning("PEFT: %s", textwrap.shorten(text, 500))
