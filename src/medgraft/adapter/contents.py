"""What an adapter's folder holds, read without torch and without the base, and checked before anything acts on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgraft.adapter.files import read_json, regular_file
from medgraft.adapter.locating import locate_adapter
from medgraft.adapter.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    PEFT_WEIGHTS,
    WEIGHTS,
    Manifest,
    digest_problems,
    listing_problems,
    read_manifest,
)
from medgraft.adapter.peft_settings import check_settings
from medgraft.adapter.tensor_files import StoredTensor, check_finite, read_header
from medgraft.errors import AdapterError

PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class Contents:
    """The files of an adapter that loading reads: their names, PEFT's settings, and the tensors in each safetensors file.

    `manifest` is None for a plain PEFT folder, `settings` for a package without PEFT's config.
    """

    folder: Path
    manifest: Manifest | None
    files: tuple[str, ...]
    settings: Mapping[str, Any] | None = None
    tensors: Mapping[str, Mapping[str, StoredTensor]] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, StoredTensor]:
        """The tensors of the weight files, by name."""
        return {name: tensor for file in WEIGHTS for name, tensor in self.tensors.get(file, {}).items()}

    @property
    def peft_weights(self) -> str | None:
        """The file that has PEFT's weights; None for a package without PEFT's config."""
        return next((name for name in PEFT_WEIGHTS if name in self.tensors), None)


def read_contents(source: str | Path) -> Contents:
    """Read the manifest, settings and headers of an adapter, a plain PEFT folder included; `check_bytes` checks the rest.

    AdapterError if a file is missing, unlisted, no regular file or of another size than in the manifest, or if its settings or
    headers cannot be used.
    """
    folder = locate_adapter(source)
    manifest = read_manifest(folder) if regular_file(folder, MANIFEST) else None
    problem = next(listing_problems(folder, manifest), None) if manifest else _plain_peft_problem(folder)
    if problem:
        raise AdapterError(problem)
    files = tuple(manifest.files) if manifest else (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    tensors = {name: read_header(folder / name) for name in files if name.endswith(".safetensors")}
    settings = read_json(folder / ADAPTER_CONFIG) if ADAPTER_CONFIG in files else None
    contents = Contents(folder, manifest, files, settings, tensors)
    if settings is not None:
        check_settings(folder / ADAPTER_CONFIG, settings, tensors.get(contents.peft_weights or "", {}))
    return contents


def _plain_peft_problem(folder: Path) -> str | None:
    """Why `folder`, which has no manifest, is no PEFT adapter either."""
    if regular_file(folder, ADAPTER_CONFIG) is None:
        return f"{folder} is no medgraft adapter: it has no {MANIFEST}, and no {ADAPTER_CONFIG} as PEFT's have."
    if regular_file(folder, ADAPTER_WEIGHTS) is None:
        found = f"only {PICKLE}, which can run code when it is loaded" if (folder / PICKLE).exists() else "no weights"
        return f"{folder} has {found}. Save the adapter as {ADAPTER_WEIGHTS}, as PEFT's save_pretrained does."
    return None


def check_bytes(contents: Contents) -> None:
    """AdapterError if a file is not the one in the manifest, or if a tensor holds NaN or infinity. Reads all files."""
    for problem in digest_problems(contents.folder, contents.manifest) if contents.manifest else ():
        raise AdapterError(problem)
    for name, tensors in contents.tensors.items():
        check_finite(contents.folder / name, tensors)


def verify(source: str | Path) -> tuple[str, ...]:
    """A sentence for everything that is wrong with an adapter; AdapterError if there is none."""
    folder, problems = locate_adapter(source), []
    try:
        if regular_file(folder, MANIFEST):
            manifest = read_manifest(folder)
            problems += [*listing_problems(folder, manifest), *digest_problems(folder, manifest)]
        if not problems:
            check_bytes(read_contents(folder))
    except AdapterError as error:
        problems.append(str(error))
    return tuple(problems)
