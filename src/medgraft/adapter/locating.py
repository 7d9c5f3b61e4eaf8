"""Find the folder of an adapter from what a user named: the package itself, or the folder of the run that made it."""

from __future__ import annotations

import os
from pathlib import Path

from medgraft.adapter.manifest import ADAPTER_CONFIG, MANIFEST
from medgraft.adapter.whole_folder import standing
from medgraft.errors import AdapterError

IN_RUN = "adapter"  # the package's folder in the folder of a run


def locate_adapter(source: str | Path) -> Path:
    """The folder of the adapter `source`: a package, a plain PEFT adapter, or a run's folder that has one."""
    folder = standing(Path(source))
    if not os.path.isdir(folder):  # noqa: PTH112 - Path raises for a name of 300 characters
        raise AdapterError(f"There is no adapter folder {folder}.")
    inside = standing(folder / IN_RUN)
    newer = (inside / MANIFEST).is_file()  # than a package of an earlier version in the run's folder itself
    return inside if newer or (is_adapter(inside) and not is_adapter(folder)) else folder


def is_adapter(folder: Path) -> bool:
    """Whether `folder` has a manifest or PEFT's config."""
    return any(os.path.lexists(folder / name) for name in (MANIFEST, ADAPTER_CONFIG))
