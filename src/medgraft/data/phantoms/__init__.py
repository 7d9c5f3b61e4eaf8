"""The embedded data set: simplified, physically inspired synthetic radiology, deterministic for a seed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.phantoms.writer import VERSION, read_facts, write_phantoms
from medgraft.data.roco import Roco
from medgraft.file_index import cache_folder
from medgraft.types import Example

__all__ = ["Phantoms", "write_phantoms"]


class Phantoms(Dataset):
    """`count` phantoms from `seed`, made once and cached for the user, or read from a folder of phantoms."""

    synthetic: ClassVar[bool] = True

    count: int = Field(default=3000, gt=0, description="number of images in all splits")
    seed: int = Field(default=0, ge=0, description="seed of the images' content")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        name = f"phantoms-v{VERSION}-{self.count}-{self.seed}"
        folder = path or cached(name, lambda new: write_phantoms(new, count=self.count, seed=self.seed))
        facts = read_facts(folder)
        reader = Roco(groups="patients.csv", group_column="patient")
        reader.use_notes(self.notes)
        for example in reader.read(folder):
            yield replace(example, facts=facts.get(example.id))


def cached(name: str, write: Callable[[Path], object]) -> Path:
    """The cached folder of this name, which `write` fills elsewhere; it is moved into place, so it is always complete."""
    cache = cache_folder()
    folder = cache / name
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = cache / f"making-{uuid4().hex}"
        temporary.mkdir()
        try:
            write(temporary)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # a real error, not another process that was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
