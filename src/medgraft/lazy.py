"""Packages whose names are imported when they are first used, so that a command loads torch only if it needs it."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any


def lazily(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of `package`: what its file imports under `if TYPE_CHECKING:` is imported when it is first used."""

    @functools.cache
    def modules() -> dict[str, str]:
        """Names, and the modules that they are in."""
        blocks = [node for node in ast.parse(inspect.getsource(sys.modules[package])).body if isinstance(node, ast.If)]
        imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
        return {alias.name: str(node.module) for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name.startswith("__") or name not in modules():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules()[name]), name)

    return get
