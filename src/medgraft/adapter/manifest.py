"""`medgraft.json`, the manifest of an adapter: its base model, its training, its scores and its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from medgraft.adapter.files import file_digest, file_size, read_json, regular_file, shown
from medgraft.config import GenerationConfig
from medgraft.errors import AdapterError, ConfigError
from medgraft.redaction import redacted_json
from medgraft.strategies import Strategy
from medgraft.strict_model import validated
from medgraft.train_config import with_dtype

MANIFEST = "medgraft.json"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
TENSORS = "trained_tensors.safetensors"
ADAPTER_INT8, CHANGES = "adapter_model.int8.safetensors", "trained_changes.safetensors"  # see compact.py
PEFT_WEIGHTS = (ADAPTER_WEIGHTS, ADAPTER_INT8)  # of which a package has one at most
WEIGHTS = (*PEFT_WEIGHTS, TENSORS, CHANGES)
TRAINED_ON, CARD = "trained_on.safetensors", "README.md"
FILES = (*WEIGHTS, ADAPTER_CONFIG, TRAINED_ON)  # all that medgraft writes beside manifest and card
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja",
)  # fmt: skip

Name = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]


class FileEntry(BaseModel):
    """The SHA-256 and size of a file in the package."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Ancestor(BaseModel):
    """An adapter that another came from: the digest of its weights, and how it was trained (None where that is unknown).

    `conversion` is the text of the manifest's `conversion`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    adapter: str
    data: str | None = None
    data_fingerprint: str | None = None
    images: int | None = None
    steps: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    seed: int | None = None
    conversion: str | None = None
    versions: dict[str, str | None] = {}

    def __str__(self) -> str:
        """One line, with the first digits of the digest."""
        name, made = f"adapter `{self.adapter[:16]}`", f" ({self.conversion})" if self.conversion else ""
        if self.steps is None:
            return f"{name}{made}" if made else f"{name}, whose training is unknown"
        epochs = "" if self.epochs is None else f" ({self.epochs:g} epochs)"
        rate = "" if self.learning_rate is None else f", peak learning rate {self.learning_rate:g}"
        return f"{name}: {self.steps} steps{epochs} on {self.images} images of `{self.data}`{rate}, seed {self.seed}{made}"


class Conversion(BaseModel):
    """How a package was made from others without training: the action of `medgraft adapter`, its settings, and of what."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    action: Literal["combine", "extract"]
    settings: dict[str, JsonValue]
    sources: tuple[Ancestor, ...]

    def __str__(self) -> str:
        """One line."""
        settings = "".join(f", {name} {_shown(value)}" for name, value in self.settings.items() if value is not None)
        return f"medgraft adapter {self.action}{settings}; from {'; '.join(map(str, self.sources))}"


def _shown(value: JsonValue) -> str:
    return " ".join(
        f"{item:g}" if isinstance(item, float) else str(item) for item in (value if isinstance(value, list) else [value])
    )


class Manifest(BaseModel):
    """The content of medgraft.json. Unknown keys are errors, so that a newer format is refused, not misread.

    `base_tensors` describes the base's tensors one by one, see base_weights.py. `acceleration` lists the kernels used in
    training. Both are None in older packages. `image_size` is `image.size`, None for the base's own. `lineage` lists the
    adapters that training went on from, the oldest first; `conversion` says how the package was made from others without
    training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    backbone: Name
    base_fingerprint: Name
    base_tensors: str | None = Field(default=None, pattern="^[0-9a-f]*$")
    strategy: Name
    strategy_settings: Strategy
    data: dict[str, Any]
    prompt: str = Field(max_length=100_000)
    max_text_tokens: int = Field(gt=0)
    dtype: Literal["bf16", "fp16", "fp32"]
    image_size: int | None = Field(default=None, gt=0, le=8192)
    acceleration: tuple[Name, ...] | None = None
    seed: int
    training: dict[str, Any]
    metrics: dict[str, float]
    evaluation: dict[str, Any]
    versions: dict[str, str | None]
    lineage: tuple[Ancestor, ...] = ()
    conversion: Conversion | None = None
    files: dict[str, FileEntry]

    @model_validator(mode="before")
    @classmethod
    def _dtype_by_its_former_name(cls, values: Any) -> Any:
        """Read `bf16`, which packages of earlier versions have."""
        return with_dtype(values)

    @field_validator("data")
    @classmethod
    def _names_the_data(cls, data: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(data.get("name"), str) or not isinstance(data.get("options", {}), dict):
            raise ValueError("it needs the name of the data set, and options by name if there are any")
        return data

    @field_validator("files")
    @classmethod
    def _are_known(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files.keys() - {*FILES, *TOKENIZER_FILES}:  # which may lead out of the folder
            raise ValueError(f"{shown(name)} is no file of a package. Known: {', '.join(FILES)}")
        return files


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`; AdapterError if it is missing, of another format, or has settings that cannot be used."""
    path = regular_file(folder, MANIFEST)
    if path is None:
        raise AdapterError(f"{folder} is no medgraft adapter: it has no {MANIFEST}.")
    try:
        manifest = Manifest.model_validate(read_json(path))
        if stored := manifest.evaluation.get("generation"):
            validated(GenerationConfig, stored, "evaluation.generation")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AdapterError(f"{path} cannot be read by this medgraft: {where}: {first['msg']}") from None
    except ConfigError as error:
        raise AdapterError(f"{path} cannot be read by this medgraft: {error}") from None
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write medgraft.json, without secrets."""
    unset = {"image_size"} if manifest.image_size is None else None  # which earlier versions do not know
    text = redacted_json(manifest.model_dump_json(indent=2, exclude=unset))
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def file_entry(path: Path) -> FileEntry:
    """Digest and size of a file."""
    return FileEntry(sha256=file_digest(path), bytes=file_size(path))


def listing_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """A sentence for each file of the package in `folder` that is missing, not listed or of a wrong size."""
    for name in (*WEIGHTS, ADAPTER_CONFIG):
        if name not in manifest.files and regular_file(folder, name):
            yield f"{folder / name} is not listed in {MANIFEST}, so it is not the adapter's. Copy the whole folder again."
    for name, entry in manifest.files.items():
        path = regular_file(folder, name)
        if path is None:
            yield f"{folder} is incomplete: {name} is missing. Copy the whole folder again."
        elif file_size(path) != entry.bytes:
            yield f"{path} was altered or cut off: it has {file_size(path):,} bytes instead of {entry.bytes:,}. Copy it again."
    strategy, in_place = manifest.strategy_settings, manifest.training.get("in_place", 0)
    wanted = [PEFT_WEIGHTS, (ADAPTER_CONFIG,)] if strategy.uses_adapter else []
    wanted += [(TENSORS, CHANGES)] if in_place or not strategy.uses_adapter else []
    for names in wanted:
        if not manifest.files.keys() & set(names):
            yield f"{folder / MANIFEST} lists no {' or '.join(names)}, which its strategy {manifest.strategy} needs."
    if set(PEFT_WEIGHTS) <= manifest.files.keys():
        yield f"{folder / MANIFEST} lists both {' and '.join(PEFT_WEIGHTS)}, of which only one can be the adapter's."


def digest_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """A sentence for each file whose SHA-256 is not the one in the manifest; `listing_problems` tells of those it skips."""
    for name, entry in manifest.files.items():
        path = regular_file(folder, name)
        if path and file_size(path) == entry.bytes and file_digest(path) != entry.sha256:
            yield f"{path} was altered or cut off: its SHA-256 is not the one in {MANIFEST}. Copy it again."
