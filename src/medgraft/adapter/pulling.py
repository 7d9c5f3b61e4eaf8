"""Pull an adapter from the Hugging Face hub: download it, verify it, and copy it into a folder if one is named."""

from __future__ import annotations

import shutil
from pathlib import Path

from medgraft.adapter.contents import check_bytes, read_contents
from medgraft.adapter.hub import PACKAGE_FILES, HubName, download
from medgraft.adapter.locating import Located, is_adapter
from medgraft.adapter.whole_folder import replacing
from medgraft.errors import AdapterError


def pull(name: HubName, out: Path | None = None, *, overwrite: bool = False) -> Located:
    """The verified package `name`, in the hub's cache or in `out`.

    A damaged copy in the cache is downloaded again. AdapterError if the package is damaged on the hub, or if `out` holds
    anything but an adapter that `overwrite` allows to be replaced.
    """
    if out is not None:
        _check_free(out, overwrite=overwrite)
    found = download(name)
    try:
        _verify(found.folder)
    except AdapterError:
        found = download(name, again=True)
        _verify(found.folder)
    if out is not None:
        _copy(found.folder, out)
    return Located(out or found.folder, f"{name.repo}@{found.commit}")


def _verify(folder: Path) -> None:
    check_bytes(read_contents(folder))


def _check_free(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise AdapterError(f"{out} is a file. Name a new folder.")
    present = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if others := sorted(set(present) - set(PACKAGE_FILES)):
        raise AdapterError(f"{out} holds other files, such as {others[0]}. Name a new folder.")
    if present and not (overwrite and is_adapter(out)):
        raise AdapterError(f"{out} already holds {present[0]}. Name a new folder, or add --overwrite to replace an adapter.")


def _copy(source: Path, out: Path) -> None:
    """Copy the package's files, which are links in the hub's cache; `out` is never seen half written."""
    with replacing(out, PACKAGE_FILES) as new:
        for name in PACKAGE_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, new / name)
