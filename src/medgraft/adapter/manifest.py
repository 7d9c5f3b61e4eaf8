"""`medgraft.json`, the manifest of an adapter: its base model, its training, its scores and its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from medgraft.errors import AdapterError
from medgraft.strategies import Strategy

MANIFEST = "medgraft.json"


class FileEntry(BaseModel):
    """The SHA-256 and size of a file in the package."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    bytes: int


class Ancestor(BaseModel):
    """An adapter that training went on from: the digest of its weights, and how it was trained (None where that is unknown)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    adapter: str
    data: str | None = None
    data_fingerprint: str | None = None
    images: int | None = None
    steps: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    seed: int | None = None
    versions: dict[str, str | None] = {}

    def __str__(self) -> str:
        """One line, with the first digits of the digest."""
        if self.data is None:
            return f"adapter `{self.adapter[:16]}`, whose training is unknown"
        epochs = "" if self.epochs is None else f" ({self.epochs:g} epochs)"
        rate = "" if self.learning_rate is None else f", peak learning rate {self.learning_rate:g}"
        return (
            f"adapter `{self.adapter[:16]}`: {self.steps} steps{epochs} on {self.images} images of `{self.data}`"
            f"{rate}, seed {self.seed}"
        )


class Manifest(BaseModel):
    """The content of medgraft.json. Unknown keys are errors, so that a newer format is refused, not misread.

    `acceleration` lists the kernels used in training; None in older packages. `lineage` lists the adapters that training went
    on from, the oldest first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    backbone: str
    base_fingerprint: str
    strategy: str
    strategy_settings: Strategy
    data: dict[str, Any]
    prompt: str
    max_text_tokens: int
    bf16: bool
    acceleration: tuple[str, ...] | None = None
    seed: int
    training: dict[str, Any]
    metrics: dict[str, float]
    evaluation: dict[str, Any]
    versions: dict[str, str | None]
    lineage: tuple[Ancestor, ...] = ()
    files: dict[str, FileEntry]


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`; AdapterError if it is missing or of another format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise AdapterError(f"{folder} is no medgraft adapter: it has no {MANIFEST}.")
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AdapterError(f"{path} cannot be read by this medgraft: {where}: {first['msg']}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write medgraft.json."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def file_entry(path: Path) -> FileEntry:
    """Digest and size of a file."""
    content = path.read_bytes()
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Raise AdapterError unless every file in the manifest exists, unaltered."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise AdapterError(f"{folder} is incomplete: {name} is missing. Copy the whole folder again.")
        if file_entry(path) != entry:
            raise AdapterError(f"{path} was altered or cut off: its SHA-256 is not the one in {MANIFEST}. Copy it again.")
