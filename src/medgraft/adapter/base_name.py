"""What a package says of its base: a hub id, or the last name of a folder, but no path of the machine that made it.

`NAME:HUB_ID` and `NAME` stay as they are; a folder becomes `NAME:./FOLDER`, which loads where that folder lies in the working
folder. On the machine that made it the run's record says where the base is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medgraft.adapter.manifest import Manifest
from medgraft.errors import AdapterError

_RECORD = "record.json"  # in the folder of a run, beside the package
_RECORD_BYTES = 100_000_000  # no record is larger
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_PUBLIC = re.compile(r"\./[^/\\]+")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]\w+[/\\]?$")


def public_base(backbone: str) -> str:
    """`NAME[:SOURCE]` without folders above the base's own; a snapshot in the hub's cache becomes its hub id."""
    name, _, source = backbone.partition(":")
    if snapshot := _SNAPSHOT.search(source):
        return f"{name}:{snapshot[1]}/{snapshot[2]}"
    if not source or _PUBLIC.fullmatch(source) or (_HUB_ID.fullmatch(source) and not Path(source).is_dir()):
        return backbone
    return f"{name}:./{Path(source).expanduser().resolve().name}"


def hub_id(backbone: str) -> str | None:
    """The hub id in `NAME:SOURCE`, None if the source is a folder or not given."""
    source = public_base(backbone).partition(":")[2]
    return source if source and not source.startswith("./") else None


def public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A reader's options with the last name in place of each path that leads out of the data's folder."""
    return {key: _inside(value) if isinstance(value, str) else value for key, value in options.items()}


def located_base(folder: Path, manifest: Manifest) -> str:
    """The base of the package in `folder`, as `NAME:SOURCE` on this machine, by the run's record beside it or the manifest.

    AdapterError if it is a folder that is not here.
    """
    name, _, source = manifest.backbone.partition(":")
    if recorded := _recorded_base(folder, manifest):
        return recorded
    if source.startswith("./") and not os.path.isdir(source):  # noqa: PTH112 - Path raises for long names
        raise AdapterError(
            f"{folder} was trained on {name} from a folder called {source[2:]}, which is not here: "
            f"add --backbone {name}:FOLDER for the base with weights {manifest.base_fingerprint[:12]}."
        )
    return manifest.backbone


def _recorded_base(folder: Path, manifest: Manifest) -> str | None:
    """The base that the record of the run names, if it is the package's record and the base is still there."""
    path = folder.absolute().parent / _RECORD
    try:
        if not path.is_file() or path.stat().st_size > _RECORD_BYTES:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        backbone, fingerprint = str(record["config"]["backbone"]), record["base_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    there = Path(backbone.partition(":")[2]).expanduser().is_dir()
    same = fingerprint == manifest.base_fingerprint and public_base(backbone) == manifest.backbone
    return backbone if same and there else None


def _inside(value: str) -> str:
    name = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    leads_out = Path(value).is_absolute() or ".." in Path(value).parts or re.match(r"~\w*[/\\]", value)
    return name if leads_out and name not in ("", "..") else value
