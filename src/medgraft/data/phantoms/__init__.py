"""The embedded data set: simplified but physically inspired radiology, made on demand and the same for the same seed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.phantoms.writer import VERSION, read_facts, write_phantoms
from medgraft.data.roco import Roco
from medgraft.types import Example

__all__ = ["Phantoms", "write_phantoms"]


class Phantoms(Dataset):
    """`count` phantoms by `seed`, made once and kept in the user's cache, or read from a path that holds some."""

    count: int = Field(default=3000, gt=0, description="how many images are made, all splits together")
    seed: int = Field(default=0, ge=0, description="decides what they show")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        folder = path or _cached(self.count, self.seed)
        facts = read_facts(folder)
        for example in Roco(groups="patients.csv", group_column="patient").read(folder):
            yield replace(example, facts=facts.get(example.id))


def _cached(count: int, seed: int) -> Path:
    """The folder of these phantoms below XDG_CACHE_HOME; made aside and moved there whole, so it is never half full."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medgraft"
    folder = cache / f"phantoms-v{VERSION}-{count}-{seed}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=cache, prefix="making-"))
        try:
            write_phantoms(temporary, count=count, seed=seed)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was not faster: something is really wrong
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
