"""Find an adapter from what a user named: a package, the folder of the run that made it, or its name on the hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medgraft.adapter.hub import HubName, download
from medgraft.adapter.manifest import ADAPTER_CONFIG, MANIFEST
from medgraft.adapter.whole_folder import standing
from medgraft.errors import AdapterError

IN_RUN = "adapter"  # the package's folder in the folder of a run


@dataclass(frozen=True)
class Located:
    """The folder of an adapter, and its name: the folder as it was given, or `USER/REPO@COMMIT` if it is from the hub."""

    folder: Path
    name: str


def locate(source: str | Path) -> Located:
    """The adapter `source`: a package, a plain PEFT adapter, a run's folder that has one, or `USER/REPO[@REVISION]`.

    A folder that exists is taken before the hub. A `Path` is never a name on the hub; nor is text that starts with `.` or `/`.
    """
    folder = standing(Path(source))
    if os.path.isdir(folder):  # noqa: PTH112 - Path raises for a name of 300 characters
        inside = standing(folder / IN_RUN)
        newer = (inside / MANIFEST).is_file()  # than a package of an earlier version in the run's folder itself
        return Located(inside if newer or (is_adapter(inside) and not is_adapter(folder)) else folder, str(source))
    if os.path.exists(folder):  # noqa: PTH110 - the same
        raise AdapterError(f"{source} is a file. Name the adapter's folder.")
    name = HubName.parse(source) if isinstance(source, str) else None
    if name is None:
        raise AdapterError(f"There is no adapter folder {source}, nor is that a name on the hub such as USER/REPO.")
    try:
        found = download(name)
    except AdapterError as error:
        raise AdapterError(f"There is no folder {source}. {error}") from error
    return Located(found.folder, f"{name.repo}@{found.commit}")


def locate_adapter(source: str | Path) -> Path:
    """The folder of the adapter that `locate` finds."""
    return locate(source).folder


def is_adapter(folder: Path) -> bool:
    """Whether `folder` has a manifest or PEFT's config."""
    return any(os.path.lexists(folder / name) for name in (MANIFEST, ADAPTER_CONFIG))
