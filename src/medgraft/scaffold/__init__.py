"""Writes a new plugin package: it installs, passes its conformance test, and serves as a starting point."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from medgraft.errors import PluginError
from medgraft.plugin import KINDS, Kind


def new_plugin(distribution: str, kind: Kind, parent: Path) -> Path:
    """Write the package `distribution`, which provides one `kind`, into `parent`/`distribution`, and return that folder.

    PluginError if the name is not a distribution name or the folder exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", distribution):
        raise PluginError(
            f"{distribution!r} is not a package name: use lower-case letters, digits and hyphens, as in medgraft-llava."
        )
    folder = parent / distribution
    if folder.exists():
        raise PluginError(f"{folder} exists already. Choose another name, or remove it.")
    for path, text in contents(distribution, kind).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder


def contents(distribution: str, kind: Kind) -> Mapping[str, str]:
    """The files of a new plugin, by path."""
    assert kind in KINDS
    module = distribution.replace("-", "_")
    name = distribution.removeprefix("medgraft-")
    values = {"DISTRIBUTION": distribution, "MODULE": module, "NAME": name, "IDENTIFIER": name.replace("-", "_")}
    root = files("medgraft.scaffold") / "templates"
    templates = {"pyproject.toml": root / "pyproject.toml.in"}
    for entry in (root / kind).iterdir():
        file = entry.name.removesuffix(".in")
        templates[f"tests/{file}" if file.startswith("test_") else f"{module}/{file}"] = entry

    def filled(text: str) -> str:
        return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], text)

    return {path: filled(template.read_text(encoding="utf-8")) for path, template in sorted(templates.items())}
