"""Folders that do not exist yet, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from medgraft.adapter.whole_folder import replacing
from medgraft.disk import lack
from medgraft.errors import AdapterError


def check_new(out: Path) -> None:
    """AdapterError if `out` is there and not an empty folder."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise AdapterError(f"{out} is there already. Name a new folder with --out.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end of the block."""
    check_new(out)
    try:
        with replacing(out, ()) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{out} cannot be written: {lack(error) or error}.") from error
