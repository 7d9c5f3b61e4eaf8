"""Silences what libraries print at import, while loading and at every step; medgraft has its own progress bars."""

from __future__ import annotations

import logging
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_libraries() -> None:
    """Silence libraries in this process. The command line and a run's process call this, the library never does.

    Does not import transformers, which is silenced only if it was imported before: call this again after importing it.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # suggests a kernel that it would download
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")  # at every layer and step
    logging.getLogger("nibabel.global").setLevel(logging.ERROR)  # headers that it mends
    warnings.filterwarnings("ignore", module="pydicom")  # the same
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated")  # comes from PEFT
    if transformers := sys.modules.get("transformers"):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


def drop_kernel_advice() -> None:
    """Drop what bitsandbytes logs when it is first imported without the package `kernels`, and no other message of it.

    The package would download code from the hub, and the layers work without it.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")

    def passes(record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward"):
            return True
        logger.removeFilter(passes)
        return False

    logger.addFilter(passes)


@contextmanager
def without_warnings(logger: str) -> Iterator[None]:
    """Inside the block, the logger of that name passes on errors alone."""
    silenced = logging.getLogger(logger)
    level = silenced.level
    silenced.setLevel(logging.ERROR)
    try:
        yield
    finally:
        silenced.setLevel(level)


def call_quietly(call: bytes) -> None:
    """Silence libraries, then unpickle and run a call (function, arguments)."""
    quiet_libraries()
    function, arguments = pickle.loads(call)
    quiet_libraries()
    function(*arguments)
