"""Switching the classes of modules: the one place where a module's class is changed, and changed back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

Undo = Callable[[], None]
Table = Mapping[type[nn.Module], type[nn.Module]]


def swap(model: nn.Module, table: Table, wanted: Callable[[str, nn.Module], bool] = lambda name, module: True) -> Undo | None:
    """Give every module that is `wanted`, and whose exact type is a key of `table`, the type that stands there.

    Returns what changes them back, or None if the model has modules of neither kind. Parameters, buffers, hooks and names
    stay as they are. Switching again changes nothing.
    """
    changed = [(m, type(m)) for name, m in model.named_modules() if type(m) in table and wanted(name, m)]
    targets = tuple(table.values())
    if not changed and not any(isinstance(module, targets) for module in model.modules()):
        return None
    for module, kind in changed:
        module.__class__ = table[kind]

    def undo() -> None:
        for module, kind in changed:
            module.__class__ = kind

    return undo
