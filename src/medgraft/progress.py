"""Progress bars, and log lines of the logger `medgraft` that do not break them.

Bars show if that logger is enabled for INFO, unless `progress_bars` overrides it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

from medgraft.escaping import shown

_logger = logging.getLogger("medgraft")
_shown: ContextVar[bool | None] = ContextVar("medgraft_progress_bars", default=None)


def progress_bar(
    items: Iterable[Any] | None = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0, least: int = 1
) -> tqdm[Any]:
    """A tqdm bar over `items`, or of `total` steps that the caller updates; hidden if there are fewer than `least`."""
    count = total if total is not None or not isinstance(items, Sized) else len(items)
    hidden = (count is not None and count < least) or not bars_are_shown()
    return tqdm(items, desc=desc, unit=unit, total=total, initial=initial, disable=hidden, dynamic_ncols=True)


def bars_are_shown() -> bool:
    """Whether bars show here and now."""
    shown = _shown.get()
    return _logger.isEnabledFor(logging.INFO) if shown is None else shown


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Show or hide progress bars inside the block, whatever the log level."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def log_to_stderr(level: int = logging.INFO, *, indent: str = "") -> Iterator[None]:
    """Print log messages of medgraft from `level` on as plain lines above the progress bars, inside the block."""
    handler = _AboveBars()
    handler.setFormatter(logging.Formatter(f"{indent}%(message)s"))
    before = _logger.level
    _logger.addHandler(handler)
    _logger.setLevel(level)
    try:
        yield
    finally:
        _logger.setLevel(before)
        _logger.removeHandler(handler)


class _AboveBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(shown(self.format(record)), file=sys.stderr)
