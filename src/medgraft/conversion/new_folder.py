"""Write a folder whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medgraft.errors import AdapterError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end of the block; AdapterError if `out` is there and not empty."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise AdapterError(f"{out} is there already. Name a new folder with --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name  # cards name their folder
        folder.mkdir()
        yield folder
        folder.replace(out)
